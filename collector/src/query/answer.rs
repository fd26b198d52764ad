//! Rows on their way to the reader: tables joined by time, as JSON, the newest
//! so many of them.

use std::collections::VecDeque;

use sumun_lake::engine::{Query, WINDOW};
use sumun_lake::{Engine, RowReader};
use sumun_proto::v1::search_reply::Message;
use sumun_proto::v1::{Completeness, Rows, SearchReply};
use tokio::sync::mpsc;
use tonic::Status;

/// Rows of a message.
const ROWS: usize = 512;
/// Bytes of a message, but for its last row.
const BYTES: usize = 256 * 1024;

/// Why an answer ended early.
#[derive(Debug)]
pub(super) enum Stop {
    /// A scan failed.
    Failed(sumun_lake::Error),
    /// The reader is gone.
    Gone,
}

impl From<sumun_lake::Error> for Stop {
    fn from(error: sumun_lake::Error) -> Self {
        Stop::Failed(error)
    }
}

/// One answer.
pub(super) struct Answer<'a> {
    pub(super) engine: &'a Engine,
    pub(super) replies: &'a mpsc::Sender<Result<SearchReply, Status>>,
}

impl Answer<'_> {
    /// Sends the newest `limit` rows of all queries, oldest first; 0 = all.
    /// True if there were more.
    pub(super) async fn rows(&self, queries: Vec<Query>, limit: usize) -> Result<bool, Stop> {
        let mut queries = queries;
        let mut cut = Cut::none();
        let mut truncated = false;
        if limit > 0 {
            // Times alone first: to sort whole rows of which most are then
            // thrown away would cost many times as much.
            let times = self
                .engine
                .newest(&queries, limit.saturating_add(1))
                .await?;
            truncated = times.len() > limit;
            if truncated && let Some(oldest) = times.get(limit - 1) {
                let newer = times.iter().take_while(|time| *time > oldest).count();
                cut = Cut::at(*oldest, limit - newer);
                for query in &mut queries {
                    query.range.since = *oldest;
                }
            }
        }
        let few = (1..=WINDOW).contains(&limit);
        let mut readers: Vec<_> = queries
            .into_iter()
            .map(|query| match few {
                true => RowReader::of_few(self.engine, query),
                false => RowReader::new(self.engine, query),
            })
            .collect();
        let mut message = Pending::default();
        loop {
            let mut next: Option<(i64, usize)> = None;
            for (at, reader) in readers.iter_mut().enumerate() {
                if let Some(time) = reader.peek().await?
                    && next.is_none_or(|(first, _)| time < first)
                {
                    next = Some((time, at));
                }
            }
            let row = match next {
                Some((time, at)) => readers[at].take().map(|row| (time, row)),
                None => None,
            };
            let ended = row.is_none();
            for row in cut.pass(row) {
                message.push(row);
                if message.is_full() {
                    self.send(message.take()).await?;
                }
            }
            if ended {
                break;
            }
        }
        if !message.rows.is_empty() {
            self.send(message.take()).await?;
        }
        Ok(truncated)
    }

    /// Sends the last message.
    pub(super) async fn completeness(&self, completeness: Completeness) -> Result<(), Stop> {
        self.send(Message::Completeness(completeness)).await
    }

    async fn send(&self, message: Message) -> Result<(), Stop> {
        let reply = SearchReply {
            message: Some(message),
        };
        self.replies.send(Ok(reply)).await.map_err(|_| Stop::Gone)
    }
}

/// Rows of a message that is being filled.
#[derive(Default)]
struct Pending {
    rows: Vec<String>,
    bytes: usize,
}

impl Pending {
    fn push(&mut self, row: String) {
        self.bytes += row.len();
        self.rows.push(row);
    }

    fn is_full(&self) -> bool {
        self.rows.len() >= ROWS || self.bytes >= BYTES
    }

    fn take(&mut self) -> Message {
        self.bytes = 0;
        Message::Rows(Rows {
            json: std::mem::take(&mut self.rows),
        })
    }
}

/// Lets pass the last so many rows of the oldest time, and all that are newer.
struct Cut {
    oldest: Option<i64>,
    keep: usize,
    held: VecDeque<String>,
}

impl Cut {
    fn none() -> Self {
        Cut {
            oldest: None,
            keep: 0,
            held: VecDeque::new(),
        }
    }

    fn at(oldest: i64, keep: usize) -> Self {
        Cut {
            oldest: Some(oldest),
            keep,
            held: VecDeque::new(),
        }
    }

    /// Takes the next row, or the end, and gives what is sure to stay.
    fn pass(&mut self, row: Option<(i64, String)>) -> Vec<String> {
        if let Some((time, row)) = row {
            if self.oldest.is_some_and(|oldest| time < oldest) {
                // A gap that began before and reaches into the range.
                return Vec::new();
            }
            if Some(time) == self.oldest {
                self.held.push_back(row);
                if self.held.len() > self.keep {
                    self.held.pop_front();
                }
                return Vec::new();
            }
            let mut sure: Vec<String> = self.held.drain(..).collect();
            sure.push(row);
            return sure;
        }
        self.held.drain(..).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_equal_times_the_last_ones_stay() {
        let mut cut = Cut::at(5, 2);
        let mut passed = Vec::new();
        for (time, row) in [(4, "-"), (5, "a"), (5, "b"), (5, "c"), (6, "d"), (7, "e")] {
            passed.extend(cut.pass(Some((time, row.to_owned()))));
        }
        passed.extend(cut.pass(None));
        assert_eq!(passed, ["b", "c", "d", "e"]);
    }
}
