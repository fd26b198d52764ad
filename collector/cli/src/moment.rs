//! Durations and times as people write them, and times as JSON shows them.

use std::str::FromStr;
use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A duration: `5m`, `2h`, `3d`, `90s`, `500ms`, `1w`, `1h30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

/// A point in time: a duration ago, or RFC 3339.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// That long before now.
    Ago(Duration),
    /// Nanoseconds since the Unix epoch.
    At(i64),
}

impl Moment {
    /// Nanoseconds since the Unix epoch, with `now` in the same unit.
    pub(crate) fn resolve(self, now: i64) -> i64 {
        match self {
            Self::Ago(span) => {
                now.saturating_sub(i64::try_from(span.as_nanos()).unwrap_or(i64::MAX))
            }
            Self::At(at) => at,
        }
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong =
            || format!("{text:?} is not a duration; write it like 30s, 5m, 2h, 3d or 1h30m");
        let mut rest = text;
        let mut total = Duration::ZERO;
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (number, tail) = rest.split_at(digits);
            let letters = tail.bytes().take_while(u8::is_ascii_alphabetic).count();
            let (unit, tail) = tail.split_at(letters);
            let millis: u64 = match unit {
                "ms" => 1,
                "s" => 1000,
                "m" => 60_000,
                "h" => 3_600_000,
                "d" => 86_400_000,
                "w" => 7 * 86_400_000,
                _ => return Err(wrong()),
            };
            let part = number
                .parse::<u64>()
                .ok()
                .and_then(|number| number.checked_mul(millis))
                .map(Duration::from_millis)
                .ok_or_else(wrong)?;
            total = total.checked_add(part).ok_or_else(wrong)?;
            rest = tail;
        }
        if text.is_empty() {
            return Err(wrong());
        }
        Ok(Self(total))
    }
}

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(Span(span)) = text.parse() {
            return Ok(Self::Ago(span));
        }
        OffsetDateTime::parse(text, &Rfc3339)
            .ok()
            .and_then(|at| i64::try_from(at.unix_timestamp_nanos()).ok())
            .map(Self::At)
            .ok_or_else(|| {
                format!(
                    "{text:?} is neither a duration (30s, 5m, 2h, 3d) \
                     nor a time in RFC 3339 (2026-01-02T03:04:05Z)"
                )
            })
    }
}

/// Now, in nanoseconds since the Unix epoch.
pub(crate) fn now() -> i64 {
    i64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos()).unwrap_or(i64::MAX)
}

/// RFC 3339 in UTC with as many digits as needed; `None` for 0, which means "not known".
pub(crate) fn rfc3339(unix_ns: i64) -> Option<String> {
    if unix_ns == 0 {
        return None;
    }
    OffsetDateTime::from_unix_timestamp_nanos(unix_ns.into())
        .ok()?
        .format(&Rfc3339)
        .ok()
}

/// An RFC 3339 time cut to milliseconds, for tables.
pub(crate) fn millis(rfc3339: &str) -> String {
    let Some(whole) = rfc3339.strip_suffix('Z') else {
        return rfc3339.to_owned();
    };
    let (seconds, fraction) = whole.split_once('.').unwrap_or((whole, ""));
    let digits: String = fraction.chars().chain("000".chars()).take(3).collect();
    format!("{seconds}.{digits}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_in_every_unit_and_combined() {
        for (text, seconds) in [
            ("90s", 90),
            ("5m", 300),
            ("2h", 7200),
            ("3d", 259_200),
            ("1w", 604_800),
            ("1h30m", 5400),
            ("2000ms", 2),
        ] {
            assert_eq!(
                text.parse(),
                Ok(Span(Duration::from_secs(seconds))),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in [
            "",
            "5",
            "m",
            "5 m",
            "-5m",
            "5mm",
            "1.5h",
            "99999999999999999999s",
            "5m3",
        ] {
            assert!(text.parse::<Span>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn moments_are_relative_or_absolute() {
        let now = 1_000_000_000_000;
        assert_eq!(
            "1m".parse::<Moment>().map(|at| at.resolve(now)),
            Ok(940_000_000_000)
        );
        assert_eq!(
            "1970-01-01T00:00:01.5+00:00".parse::<Moment>(),
            Ok(Moment::At(1_500_000_000))
        );
        assert!("yesterday".parse::<Moment>().is_err());
        assert!("2026-01-02".parse::<Moment>().is_err());
    }

    #[test]
    fn times_are_shown_exactly_and_in_tables_to_the_millisecond() {
        assert_eq!(rfc3339(1), Some("1970-01-01T00:00:00.000000001Z".into()));
        assert_eq!(rfc3339(0), None);
        assert_eq!(
            millis("1970-01-01T00:00:00.000000001Z"),
            "1970-01-01T00:00:00.000Z"
        );
        assert_eq!(millis("1970-01-01T00:00:00Z"), "1970-01-01T00:00:00.000Z");
        assert_eq!(
            millis("1970-01-01T00:00:00.12Z"),
            "1970-01-01T00:00:00.120Z"
        );
    }
}
