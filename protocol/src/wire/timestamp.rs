//! Times on the wire: RFC 3339 in UTC, milliseconds, for people.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::record::WallMillis;

const DAY_MS: i64 = 86_400_000;

/// A [`WallMillis`] that reads and prints as `2026-11-21T13:30:20.123Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub WallMillis);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.0;
        let (year, month, day) = civil_from_days(millis.div_euclid(DAY_MS));
        let of_day = millis.rem_euclid(DAY_MS);
        let (hour, minute) = (of_day / 3_600_000, of_day / 60_000 % 60);
        let (second, milli) = (of_day / 1_000 % 60, of_day % 1_000);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z"
        )
    }
}

impl std::str::FromStr for Timestamp {
    type Err = &'static str;

    /// Any RFC 3339 time in UTC: participants are written in many languages, and each prints its own number of
    /// fractional digits. What is finer than a millisecond is dropped.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "not an RFC 3339 time in UTC, such as 2026-11-21T13:30:20.123Z";
        let (to_the_second, rest) = text.split_at_checked(19).ok_or(FORM)?;
        let separators = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
        let separated = separators
            .iter()
            .all(|&(at, byte)| to_the_second.as_bytes()[at].to_ascii_uppercase() == byte);
        let fraction = ["Z", "z", "+00:00", "-00:00"]
            .iter()
            .find_map(|utc| rest.strip_suffix(utc))
            .filter(|_| separated)
            .ok_or(FORM)?;
        let number = |from: usize, to: usize| digits(&to_the_second[from..to]).ok_or(FORM);
        let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
        let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
        let milli = match fraction.strip_prefix('.') {
            Some(fraction) => {
                digits(fraction).ok_or(FORM)?;
                let padded: String = fraction.chars().chain("00".chars()).take(3).collect();
                digits(&padded).ok_or(FORM)?
            }
            None if fraction.is_empty() => 0,
            None => return Err(FORM),
        };
        let days = days_from_civil(year, month, day);
        // A leap second is the first one of the next minute; a day that its month does not have is no day.
        if civil_from_days(days) != (year, month, day) || hour > 23 || minute > 59 || second > 60 {
            return Err(FORM);
        }
        let seconds = (hour * 60 + minute) * 60 + second;
        let millis = days * DAY_MS + seconds * 1_000 + milli;
        // The leap second of the year 9999 would be in a year that RFC 3339 can not write.
        if civil_from_days(millis.div_euclid(DAY_MS)).0 > 9_999 {
            return Err(FORM);
        }
        Ok(Self(WallMillis(millis)))
    }
}

/// A number of nothing but 1 to 18 ASCII digits.
fn digits(text: &str) -> Option<i64> {
    let plain = (1..=18).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

/// Days since 1970-01-01 to year, month, day (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// The inverse of [`civil_from_days`].
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month_from_march = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_print_as_rfc_3339_and_read_back() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_795_267_820_123, "2026-11-21T13:30:20.123Z"),
            (4_107_542_399_999, "2100-02-28T23:59:59.999Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
        ] {
            let timestamp = Timestamp(WallMillis(millis));
            assert_eq!(timestamp.to_string(), text);
            assert_eq!(text.parse(), Ok(timestamp));
        }
    }

    #[test]
    fn every_rfc_3339_time_in_utc_is_read_and_nothing_else() {
        for (text, read_as) in [
            ("2026-11-21T13:30:20Z", "2026-11-21T13:30:20.000Z"),
            ("2026-11-21T13:30:20.1Z", "2026-11-21T13:30:20.100Z"),
            ("2026-11-21T13:30:20.123456789Z", "2026-11-21T13:30:20.123Z"),
            ("2026-11-21t13:30:20.123z", "2026-11-21T13:30:20.123Z"),
            ("2026-11-21T13:30:20+00:00", "2026-11-21T13:30:20.000Z"),
            ("2026-12-31T23:59:60Z", "2027-01-01T00:00:00.000Z"),
        ] {
            let timestamp: Timestamp = text.parse().unwrap();
            assert_eq!(timestamp.to_string(), read_as, "{text}");
        }
        for text in [
            "",
            "2026-11-21",
            "2026-11-21 13:30:20.123Z",
            "2026-11-21T13:30:20",
            "2026-11-21T13:30:20.Z",
            "2026-11-21T13:30:20.12aZ",
            "2026-11-21T13:30:20.-1Z",
            "2026-11-21T13:30:20+01:00",
            "2026-11-21T13:30:2ä.12Z",
            "2026-11-21T13:30:20.12äZ",
            "2026-02-29T13:30:20Z",
            "2026-13-01T13:30:20Z",
            "2026-00-01T13:30:20Z",
            "2026-11-00T13:30:20Z",
            "2026-11-21T24:00:00Z",
            "2026-11-21T13:60:00Z",
            "2026-11-21T13:30:61Z",
            "9999-12-31T23:59:60Z",
            "+026-11-21T13:30:20Z",
        ] {
            assert!(text.parse::<Timestamp>().is_err(), "{text:?}");
        }
    }
}
