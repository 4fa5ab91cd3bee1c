//! Something of each of a few participants, in the order of their names.
//!
//! Most transactions have two or three branches, and a coordinator holds a hundred thousand transactions: so they lie in a
//! vector without room to spare. The first node of a tree has room for eleven, and of branches that is a kilobyte and a half.

use crate::id::ParticipantName;

/// A map for few entries: each new one moves all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ByName<T>(Vec<(ParticipantName, T)>);

impl<T> ByName<T> {
    pub(crate) const fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn get(&self, name: &ParticipantName) -> Option<&T> {
        let at = self.place(name).ok()?;
        Some(&self.0[at].1)
    }

    pub(crate) fn get_mut(&mut self, name: &ParticipantName) -> Option<&mut T> {
        let at = self.place(name).ok()?;
        Some(&mut self.0[at].1)
    }

    /// In place of what was there under this name.
    pub(crate) fn insert(&mut self, name: ParticipantName, value: T) {
        match self.place(&name) {
            Ok(at) => self.0[at].1 = value,
            Err(at) => {
                self.0.reserve_exact(1);
                self.0.insert(at, (name, value));
            }
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ParticipantName, &T)> {
        self.0.iter().map(|(name, value)| (name, value))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&ParticipantName, &mut T)> {
        self.0.iter_mut().map(|(name, value)| (&*name, value))
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|(_, value)| value)
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.iter_mut().map(|(_, value)| value)
    }

    fn place(&self, name: &ParticipantName) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| known.cmp(name))
    }
}

impl<T> FromIterator<(ParticipantName, T)> for ByName<T> {
    fn from_iter<I: IntoIterator<Item = (ParticipantName, T)>>(entries: I) -> Self {
        let mut by_name = Self::new();
        for (name, value) in entries {
            by_name.insert(name, value);
        }
        by_name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_found_and_seen_by_name_whatever_the_order_they_came_in() {
        let names = ["north", "east", "west", "south"].map(|name| name.parse().unwrap());
        let mut by_name: ByName<usize> = names.iter().cloned().zip(0..).collect();
        by_name.insert(names[2].clone(), 7);
        *by_name.get_mut(&names[0]).unwrap() += 10;
        let seen = by_name.iter().map(|(name, value)| (name.as_str(), *value));
        let expected = [("east", 1), ("north", 10), ("south", 3), ("west", 7)];
        assert_eq!(seen.collect::<Vec<_>>(), expected);
        assert_eq!(by_name.get(&names[3]), Some(&3));
        assert_eq!(by_name.get(&"up".parse().unwrap()), None);
        assert_eq!(by_name.len(), 4);
    }

    #[test]
    fn there_is_no_room_to_spare() {
        let mut by_name = ByName::new();
        for name in ["west", "east", "north"] {
            by_name.insert(name.parse().unwrap(), [0_u64; 16]);
            assert_eq!(by_name.0.capacity(), by_name.len());
        }
    }
}
