//! `--log`: how and how much a daemon logs.
//!
//! In: a word of the command line. Out: a subscriber for everything that is traced.
//! Must not know: what is logged.

use std::str::FromStr;

use tracing_subscriber::EnvFilter;

/// What is logged if nobody says: fuser reports every answer that came too late for a reader that
/// was killed.
const LOGGED: &str = "warn,fuser=off";

/// The form of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Text,
    Json,
}

/// `text` or `json`, and maybe a level.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    form: Form,
    /// A filter as RUST_LOG has it; `None` for what RUST_LOG says, or warnings.
    filter: Option<String>,
}

impl Default for Log {
    fn default() -> Log {
        Log { form: Form::Text, filter: None }
    }
}

impl FromStr for Log {
    type Err = String;

    fn from_str(word: &str) -> Result<Log, String> {
        let (form, filter) = match word.split_once(':') {
            Some((form, filter)) => (form, Some(filter.to_owned())),
            None => (word, None),
        };
        let form = match form {
            "text" => Form::Text,
            "json" => Form::Json,
            other => return Err(format!("{other} is no form of a log: text or json")),
        };
        if let Some(filter) = &filter {
            EnvFilter::try_new(filter).map_err(|error| format!("{filter}: {error}"))?;
        }
        Ok(Log { form, filter })
    }
}

impl Log {
    /// From now on everything that is traced goes to standard error.
    pub(crate) fn start(&self) {
        let filter = match &self.filter {
            Some(filter) => EnvFilter::new(filter),
            None => EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOGGED)),
        };
        let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        match self.form {
            Form::Text => lines.init(),
            Form::Json => lines.json().flatten_event(true).with_current_span(false).init(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Form, Log};

    #[test]
    fn words() {
        let log: Log = "json:debug".parse().expect("a form and a level");
        assert_eq!((log.form, log.filter.as_deref()), (Form::Json, Some("debug")));
        let log: Log = "text".parse().expect("a form");
        assert_eq!((log.form, log.filter), (Form::Text, None));
        assert!("xml".parse::<Log>().is_err());
        assert!("json:not=a=filter".parse::<Log>().is_err());
    }
}
