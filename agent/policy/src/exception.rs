//! Reading the exceptions of a rule.

use sumun_proto::catalogue::kind_name;
use sumun_proto::v1::Kind;
use time::{Date, Month, OffsetDateTime, Time, UtcOffset};
use toml::de::DeTable;
use toml::value::{Datetime, Offset};

use crate::check::Lists;
use crate::file::{Effect, Exception};
use crate::ir::Predicate;
use crate::narrow::never;
use crate::problem::Place;
use crate::read::{Reader, Value};

const KEYS: &[&str] = &["name", "when", "owner", "expires"];
/// Most exceptions of a rule.
pub const EXCEPTIONS_MAX: usize = 64;
/// Longest name or owner, in bytes.
const TEXT_MAX: usize = 128;

impl Reader<'_> {
    pub(crate) fn exceptions(
        &mut self,
        value: &Value<'_>,
        lists: &Lists,
        kinds: &[Kind],
        effect: Effect,
    ) -> Vec<Exception> {
        let start = value.span().start;
        let Some(items) = value.get_ref().as_array() else {
            self.error(start, "exception is no list: write [[rule.exception]]");
            return Vec::new();
        };
        if items.len() > EXCEPTIONS_MAX {
            let count = items.len();
            self.error(
                start,
                format!("the rule has {count} exceptions, at most {EXCEPTIONS_MAX} are taken"),
            );
            return Vec::new();
        }
        if effect == Effect::Record {
            self.warning(
                start,
                "a rule with the effect record raises no alert: its exceptions only mark the event",
            );
        }
        let mut exceptions: Vec<Exception> = Vec::new();
        for item in items {
            let Some(table) = self.table(item, "exception") else {
                continue;
            };
            let Some(exception) = self.exception(item.span().start, table, lists, kinds) else {
                continue;
            };
            if exceptions.iter().any(|known| known.name == exception.name) {
                let name = &exception.name;
                let offset = table.get("name").map_or(start, |name| name.span().start);
                self.error(
                    offset,
                    format!("the rule has two exceptions {name:?}: give this one another name"),
                );
            }
            exceptions.push(exception);
        }
        exceptions
    }

    fn exception(
        &mut self,
        start: usize,
        table: &DeTable<'_>,
        lists: &Lists,
        kinds: &[Kind],
    ) -> Option<Exception> {
        self.keys("in [[rule.exception]]", table, KEYS, &[]);
        let name = self.words(start, table, "name");
        let owner = self.words(start, table, "owner");
        let predicate = match table.get("when") {
            None => {
                self.error(
                    start,
                    "when is missing in [[rule.exception]]: say what may pass",
                );
                None
            }
            Some(value) => {
                let predicate = self.predicate(value, lists, kinds);
                if let Some(predicate) = &predicate {
                    self.reach(value.span().start, predicate, kinds);
                }
                predicate
            }
        };
        let expires_ns = match table.get("expires") {
            None => None,
            Some(value) => Some(self.expires(value)?),
        };
        Some(Exception {
            name: name?,
            owner: owner?,
            predicate: predicate?,
            expires_ns,
            place: Place::of(
                self.source.text,
                table
                    .get("expires")
                    .map_or(start, |value| value.span().start),
            ),
        })
    }

    /// A required text of one line.
    fn words(&mut self, start: usize, table: &DeTable<'_>, key: &str) -> Option<String> {
        let Some(value) = table.get(key) else {
            self.error(start, format!("{key} is missing in [[rule.exception]]"));
            return None;
        };
        let text = self.text(value, key, TEXT_MAX)?;
        if text.trim().is_empty() || text.chars().any(char::is_control) {
            self.error(
                value.span().start,
                format!("{key} has to be some words on one line"),
            );
            return None;
        }
        Some(text)
    }

    /// Warns of an exception that excepts everything, or nothing on some kind.
    fn reach(&mut self, offset: usize, predicate: &Predicate, kinds: &[Kind]) {
        if *predicate == Predicate::everything() {
            self.warning(
                offset,
                "the exception lets everything pass: the rule will raise no alert at all",
            );
        }
        for kind in kinds {
            if never(predicate, *kind) {
                let name = kind_name(*kind);
                self.warning(
                    offset,
                    format!("the exception can never hold on {name}: there the rule always alerts"),
                );
            }
        }
    }

    fn expires(&mut self, value: &Value<'_>) -> Option<i64> {
        let offset = value.span().start;
        let Some(written) = value.get_ref().as_datetime() else {
            let ty = value.get_ref().type_str();
            self.error(
                offset,
                format!("expires is {ty}: write a date without quotes, like 2027-01-31"),
            );
            return None;
        };
        match end(written) {
            Ok(time) => Some(nanoseconds(time)),
            Err(message) => {
                self.error(offset, message);
                None
            }
        }
    }
}

/// The moment from which on the exception does not apply.
fn end(written: &Datetime) -> Result<OffsetDateTime, &'static str> {
    const NO_DATE: &str = "expires has no date: write a day like 2027-01-31";
    const NO_OFFSET: &str =
        "expires has no offset from UTC: write 2027-01-31T18:00:00Z, or the day alone";
    const NO_TIME: &str = "expires is no time that exists";
    let date = written.date.ok_or(NO_DATE)?;
    let date = Month::try_from(date.month)
        .and_then(|month| Date::from_calendar_date(date.year.into(), month, date.day))
        .map_err(|_| NO_TIME)?;
    let Some(time) = written.time else {
        // The day is part of it.
        let next = date.next_day().ok_or(NO_TIME)?;
        return Ok(next.midnight().assume_utc());
    };
    let minutes = match written.offset {
        None => return Err(NO_OFFSET),
        Some(Offset::Z) => 0,
        Some(Offset::Custom { minutes }) => i32::from(minutes),
    };
    let (second, nanosecond) = (time.second.unwrap_or(0), time.nanosecond.unwrap_or(0));
    let time = Time::from_hms_nano(time.hour, time.minute, second, nanosecond);
    let time = time.map_err(|_| NO_TIME)?;
    let offset = UtcOffset::from_whole_seconds(minutes * 60).map_err(|_| NO_TIME)?;
    Ok(date.with_time(time).assume_offset(offset))
}

/// Beyond what 64 bits hold, in 2262, is as good as never.
fn nanoseconds(time: OffsetDateTime) -> i64 {
    let ns = time.unix_timestamp_nanos();
    i64::try_from(ns).unwrap_or(if ns < 0 { i64::MIN } else { i64::MAX })
}
