//! Numbers for the screen and for JSON.

use serde_json::{Map, Value, json};

/// One line of the table.
struct Line {
    what: String,
    value: String,
    goal: String,
}

/// Everything measured, in the order it was.
#[derive(Default)]
pub struct Report {
    lines: Vec<Line>,
    json: Map<String, Value>,
}

impl Report {
    /// A heading on the screen.
    pub fn section(&mut self, title: &str) {
        self.lines.push(Line {
            what: format!("\n{title}"),
            value: String::new(),
            goal: String::new(),
        });
    }

    /// A figure: for people, and as JSON under `key`. `goal` may be empty.
    pub fn figure(&mut self, key: &str, what: &str, value: String, json: Value, goal: &str) {
        println!("  measured: {what}: {value}");
        self.lines.push(Line {
            what: what.to_owned(),
            value,
            goal: goal.to_owned(),
        });
        self.json.insert(key.to_owned(), json);
    }

    /// The table.
    #[must_use]
    pub fn table(&self) -> String {
        let width = |get: fn(&Line) -> &str| {
            let lengths = self.lines.iter().filter(|line| !line.value.is_empty());
            lengths
                .map(|line| get(line).chars().count())
                .max()
                .unwrap_or(0)
        };
        let (first, second) = (width(|line| &line.what), width(|line| &line.value));
        let mut text = String::new();
        for line in &self.lines {
            let row = format!(
                "{:<first$}  {:<second$}  {}",
                line.what, line.value, line.goal
            );
            text.push_str(row.trim_end());
            text.push('\n');
        }
        text
    }

    /// Everything as one object.
    #[must_use]
    pub fn json(&self) -> Value {
        Value::Object(self.json.clone())
    }
}

/// Median and spread of a sample.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Median.
    pub median: f64,
    /// First quartile.
    pub low: f64,
    /// Third quartile.
    pub high: f64,
    /// How many.
    pub count: usize,
}

impl Sample {
    /// Of these values; zeros when there are none.
    #[must_use]
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self {
            median: quantile(&values, 0.5),
            low: quantile(&values, 0.25),
            high: quantile(&values, 0.75),
            count: values.len(),
        }
    }

    /// For JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({"median": self.median, "q1": self.low, "q3": self.high, "n": self.count})
    }
}

impl std::fmt::Display for Sample {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            out,
            "{:.0} ({:.0}..{:.0})",
            self.median, self.low, self.high
        )
    }
}

/// A quantile of sorted values, by the nearest rank.
#[must_use]
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    if sorted.is_empty() {
        return 0.0;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a rank within a sample of a few thousand"
    )]
    let rank = (share * (sorted.len() - 1) as f64).round() as usize;
    sorted[rank]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles() {
        let sample = Sample::of(vec![5.0, 1.0, 3.0, 2.0, 4.0]);
        assert_eq!((sample.low, sample.median, sample.high), (2.0, 3.0, 4.0));
    }
}
