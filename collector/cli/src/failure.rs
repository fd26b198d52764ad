//! How a command ends when it does not end well.

use std::io;
use std::process::ExitCode;

/// A command that did not do what was asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Exit status 2: what was asked makes no sense.
    Usage(String),
    /// Exit status 1.
    Failed(anyhow::Error),
    /// Exit status 1, and what to say has been said.
    Said,
    /// The reader of standard output went away: not an error of anybody.
    ReaderGone,
}

impl Failure {
    /// Something went wrong while doing what `context` says.
    pub(crate) fn failed(error: anyhow::Error, context: impl Into<String>) -> Self {
        Self::Failed(error.context(context.into()))
    }

    /// A message alone.
    pub(crate) fn message_only(message: impl Into<String>) -> Self {
        Self::Failed(anyhow::Error::msg(message.into()))
    }

    /// What to print; `None` for nothing.
    pub(crate) fn message(&self) -> Option<String> {
        match self {
            Self::Usage(message) => Some(message.clone()),
            // The alternate form is the whole chain of causes, once.
            Self::Failed(error) => Some(format!("{error:#}")),
            Self::Said | Self::ReaderGone => None,
        }
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::from(2),
            Self::Failed(_) | Self::Said => ExitCode::FAILURE,
            Self::ReaderGone => ExitCode::SUCCESS,
        }
    }
}

/// Failures of writing to standard output.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::ReaderGone;
        }
        Self::failed(error.into(), "cannot write to standard output")
    }
}

/// What the collector answered instead of a result.
impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        use tonic::Code;
        match status.code() {
            Code::InvalidArgument => Self::Usage(status.message().to_owned()),
            Code::Unauthenticated => Self::message_only(format!(
                "the collector does not accept the token: {}; check `token` in the context file",
                status.message()
            )),
            Code::PermissionDenied | Code::NotFound | Code::FailedPrecondition => {
                Self::message_only(status.message())
            }
            code => {
                let mut message = format!("the collector failed ({code:?}): {}", status.message());
                let mut cause = std::error::Error::source(&status);
                while let Some(error) = cause {
                    message.push_str(": ");
                    message.push_str(&error.to_string());
                    cause = error.source();
                }
                Self::message_only(message)
            }
        }
    }
}
