//! A page of metrics, read as Prometheus reads it.

use std::collections::{BTreeMap, BTreeSet};

use reqwest::Method;
use unanimous_lab::wait::until;

use super::{Answer, Coordinator, SOON};

/// What `GET /metrics` said.
pub(crate) struct Scrape {
    /// By series: name and labels, as the page spells them.
    pub(crate) series: BTreeMap<String, f64>,
    /// By family: its type and its help.
    pub(crate) families: BTreeMap<String, (String, String)>,
}

impl Scrape {
    pub(crate) async fn of(coordinator: &Coordinator) -> Self {
        let page = Answer::of(coordinator.admin(Method::GET, "/metrics")).await;
        let page = page.is(200);
        assert_eq!(
            page.header("content-type"),
            "text/plain; version=0.0.4; charset=utf-8"
        );
        Self::read(&page.text)
    }

    fn read(page: &str) -> Self {
        let (mut series, mut families) = (BTreeMap::new(), BTreeMap::new());
        let mut help = None;
        for line in page.lines() {
            if let Some(text) = line.strip_prefix("# HELP ") {
                help = text.split_once(' ');
            } else if let Some(text) = line.strip_prefix("# TYPE ") {
                let (name, kind) = text.split_once(' ').expect("a type has a name");
                let (helped, help) = help.take().expect("every type comes after its help");
                assert_eq!(name, helped);
                let family = (kind.to_owned(), help.to_owned());
                let twice = families.insert(name.to_owned(), family);
                assert!(twice.is_none(), "{name} is there twice");
            } else {
                let (name, value) = line.rsplit_once(' ').expect("a series has a value");
                let value = value.parse().expect("a value is a number");
                let twice = series.insert(name.to_owned(), value);
                assert!(twice.is_none(), "{name} is there twice");
            }
        }
        Self { series, families }
    }

    /// The value of a series that must be there.
    #[track_caller]
    pub(crate) fn value(&self, series: &str) -> f64 {
        let value = self.series.get(series);
        *value.unwrap_or_else(|| panic!("there is no series {series}"))
    }

    /// What rose since `before`, by how much. Requests of HTTP, times, and what is true now are left out.
    pub(crate) fn counted_since(&self, before: &Self) -> BTreeMap<String, f64> {
        let is_event = |name: &str| {
            let family = name.split('{').next().unwrap_or_default();
            (family.ends_with("_total") || family.ends_with("_count"))
                && !family.contains("_http_requests_")
        };
        let mut rose = BTreeMap::new();
        for (name, value) in self.series.iter().filter(|(name, _)| is_event(name)) {
            let by = value - before.series.get(name).copied().unwrap_or_default();
            if by != 0.0 {
                rose.insert(name.clone(), by);
            }
        }
        rose
    }

    pub(crate) fn names(&self) -> BTreeSet<String> {
        self.series.keys().cloned().collect()
    }
}

impl Coordinator {
    /// Scrapes until a page satisfies `is_so`; that page.
    pub(crate) async fn scraped(&self, what: &str, is_so: impl Fn(&Scrape) -> bool) -> Scrape {
        until(what, SOON, async || {
            let scrape = Scrape::of(self).await;
            if is_so(&scrape) {
                Ok(scrape)
            } else {
                Err(format!("{:#?}", scrape.series))
            }
        })
        .await
        .expect("the metrics say so")
    }
}
