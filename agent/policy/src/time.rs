//! Times in predicates: RFC 3339, to nanoseconds.

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
}
