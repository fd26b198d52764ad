//! `--key value` arguments of the generators.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// The arguments of this process.
#[derive(Debug, Default)]
pub struct Args {
    values: BTreeMap<String, String>,
}

impl Args {
    /// Reads `--key value` pairs; a key followed by another key or by nothing is `true`.
    ///
    /// # Errors
    /// A word where a key was expected, or a key given twice.
    pub fn parse() -> Result<Self> {
        let mut values = BTreeMap::new();
        let mut words = std::env::args().skip(1).peekable();
        while let Some(word) = words.next() {
            let Some(key) = word.strip_prefix("--") else {
                bail!("expected --key, found '{word}'");
            };
            let value = words
                .next_if(|next| !next.starts_with("--"))
                .unwrap_or_else(|| "true".to_owned());
            if values.insert(key.to_owned(), value).is_some() {
                bail!("--{key} is given twice");
            }
        }
        Ok(Self { values })
    }

    /// Text of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(String::as_str)
    }

    /// True when the key was given.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// A number, or the default.
    ///
    /// # Errors
    /// The value is no number.
    pub fn number(&self, key: &str, default: u64) -> Result<u64> {
        match self.get(key) {
            Some(text) => text
                .parse()
                .with_context(|| format!("--{key} '{text}' is not a number")),
            None => Ok(default),
        }
    }

    /// A path that has to be given.
    ///
    /// # Errors
    /// The key is missing.
    pub fn path(&self, key: &str) -> Result<PathBuf> {
        let text = self
            .get(key)
            .with_context(|| format!("--{key} is missing"))?;
        Ok(PathBuf::from(text))
    }
}
