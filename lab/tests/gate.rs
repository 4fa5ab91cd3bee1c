use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use unanimous_lab::Gate;
use unanimous_lab::wait::until;

const SECONDS: Duration = Duration::from_secs(10);

/// Answers every request with its path and its body.
async fn echo() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream));
        }
    });
    Ok(address)
}

async fn answer(stream: TcpStream) -> anyhow::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            ensure!(stream.read_line(&mut line).await? > 0, "closed");
            match line.trim_end() {
                "" => break,
                text => lines.push(text.to_ascii_lowercase()),
            }
        }
        let length = lines
            .iter()
            .find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; length.unwrap_or("0").parse()?];
        stream.read_exact(&mut body).await?;
        let path = lines.first().and_then(|line| line.split(' ').nth(1));
        let text = format!("{} {}", path.unwrap_or(""), String::from_utf8(body)?);
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}",
            text.len()
        );
        stream.write_all(answer.as_bytes()).await?;
    }
}

async fn post(http: &reqwest::Client, gate: &Gate, path: &str) -> anyhow::Result<String> {
    let url = format!("http://{}{path}", gate.address());
    Ok(http.post(url).body("x").send().await?.text().await?)
}

fn client() -> anyhow::Result<reqwest::Client> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Ok(reqwest::Client::builder().no_proxy().build()?)
}

#[tokio::test]
async fn a_gate_holds_only_what_it_is_closed_for() -> anyhow::Result<()> {
    let (http, gate) = (client()?, Gate::in_front_of(echo().await?).await?);
    ensure!(post(&http, &gate, "/v1/commit").await? == "/v1/commit x");
    gate.close_for("/v1/commit");
    let held = tokio::spawn({
        let (http, url) = (
            http.clone(),
            format!("http://{}/v1/commit?a=b", gate.address()),
        );
        async move { http.post(url).send().await }
    });
    gate.wait_until_held(SECONDS).await?;
    ensure!(gate.held() == ["/v1/commit"]);
    // Twice, so that the second one is on a connection that has been used.
    ensure!(post(&http, &gate, "/v1/prepare").await? == "/v1/prepare x");
    ensure!(post(&http, &gate, "/v1/prepare").await? == "/v1/prepare x");
    ensure!(!held.is_finished(), "it was not held");

    gate.open();
    let lost = held.await?.err().context("it was delivered late")?;
    ensure!(!lost.is_timeout(), "{lost}");
    ensure!(post(&http, &gate, "/v1/commit").await? == "/v1/commit x");
    ensure!(gate.held().is_empty());
    Ok(())
}

#[tokio::test]
async fn a_batch_passes_without_the_messages_that_are_held() -> anyhow::Result<()> {
    let (http, gate) = (client()?, Gate::in_front_of(echo().await?).await?);
    gate.close_for("/v1/commit");
    let batch = |messages: &str| {
        let url = format!("http://{}/v1/batch", gate.address());
        http.post(url)
            .body(format!("{{\"messages\":[{messages}]}}"))
    };
    let (prepare, commit) = (
        r#"{"kind":"prepare","n":1.50}"#,
        r#"{"kind":"commit","n":2}"#,
    );
    let both = batch(&format!("{prepare},{commit}"));
    let passed = both.send().await?.text().await?;
    ensure!(
        passed == format!("/v1/batch {{\"messages\":[{prepare}]}}"),
        "{passed}"
    );
    let held = tokio::spawn(batch(commit).send());
    gate.wait_until_held(SECONDS).await?;
    held.abort();
    Ok(())
}

#[tokio::test]
async fn what_is_held_is_forgotten_when_its_sender_is_gone() -> anyhow::Result<()> {
    let (http, gate) = (client()?, Gate::in_front_of(echo().await?).await?);
    gate.close_for("/v1/commit");
    let url = format!("http://{}/v1/commit", gate.address());
    let sender = tokio::spawn(async move { http.post(url).send().await });
    gate.wait_until_held(SECONDS).await?;
    sender.abort();
    until("nothing is held", SECONDS, async || gate.held().is_empty()).await
}

#[tokio::test]
async fn a_gate_with_nobody_behind_it_closes_the_connection() -> anyhow::Result<()> {
    let nobody = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let gate = Gate::in_front_of(nobody).await?;
    ensure!(post(&client()?, &gate, "/").await.is_err());
    Ok(())
}
