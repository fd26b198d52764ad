//! Times in predicates: RFC 3339, to nanoseconds; and lengths of time in policies and configurations.

use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Nanoseconds since the Unix epoch of an RFC 3339 text; `None` if it is none, or is
/// outside 1678 to 2262, which nanoseconds in 64 bits cannot hold.
#[must_use]
pub fn parse(text: &str) -> Option<i64> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    i64::try_from(time.unix_timestamp_nanos()).ok()
}

/// RFC 3339 in UTC with the fraction it needs.
#[must_use]
pub fn written(ns: i64) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(ns.into())
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_default()
}

/// A number of seconds, minutes, hours or days (`s`, `m`, `h`, `d`), from ten seconds, as what lasts is looked at each second, to
/// 366 days.
#[must_use]
pub fn length(text: &str) -> Option<Duration> {
    let (number, seconds) = [("s", 1), ("m", 60), ("h", 3600), ("d", 86_400)]
        .into_iter()
        .find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, seconds)))?;
    let plain = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = number
        .parse::<u64>()
        .ok()
        .filter(|_| plain)?
        .checked_mul(seconds)?;
    (10..=366 * 86_400)
        .contains(&seconds)
        .then(|| Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_they_are_read() {
        for ns in [0, 1, -1, i64::MAX, i64::MIN, 1_767_225_600_000_000_000] {
            assert_eq!(parse(&written(ns)), Some(ns), "{}", written(ns));
        }
        assert_eq!(parse("1970-01-01T01:00:00+01:00"), Some(0));
        assert_eq!(parse("yesterday"), None);
        assert_eq!(parse("9999-01-01T00:00:00Z"), None);
    }

    #[test]
    fn times_have_a_unit_and_an_end() {
        let seconds = |text| length(text).map(|time| time.as_secs());
        assert_eq!(seconds("24h"), Some(86_400));
        assert_eq!((seconds("10s"), seconds("2d")), (Some(10), Some(172_800)));
        for text in [
            "9s",
            "",
            "h",
            "24",
            "-1h",
            "+1h",
            "1.5h",
            "367d",
            "99999999999999999999d",
        ] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }
}
