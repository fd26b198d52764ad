//! `tokens create`.

use std::io::Write as _;

use sumun_proto::v1::CreateTokenRequest;
use sumun_proto::v1::create_token_request::Purpose;

use crate::args::{CreateToken, Output};
use crate::failure::Failure;
use crate::moment::rfc3339;
use crate::remote::Remote;

/// How long an enrolment token is valid when `--valid` is not given: a day.
const ENROL_SECONDS: u64 = 24 * 3600;

/// Creates a token and prints it, and nothing else, in table form.
pub(crate) async fn create(
    mut remote: Remote,
    args: CreateToken,
    output: Output,
) -> Result<(), Failure> {
    let valid_seconds = match args.valid {
        Some(span) if span.0.as_secs() == 0 => {
            return Err(Failure::Usage(
                "--valid: a token must be valid for a second at least".into(),
            ));
        }
        Some(span) => span.0.as_secs(),
        None if args.admin => 0,
        None => ENROL_SECONDS,
    };
    let request = CreateTokenRequest {
        purpose: if args.admin {
            Purpose::Admin
        } else {
            Purpose::Enroll
        }
        .into(),
        uses: if args.admin { 0 } else { args.uses },
        valid_seconds,
        name: args.name,
    };
    let response = remote.admin.create_token(request).await?.into_inner();
    let mut out = std::io::stdout().lock();
    match output {
        Output::Table => writeln!(out, "{}", response.token)?,
        Output::Json | Output::Jsonl => {
            let token = serde_json::json!({
                "token": response.token,
                "expires": rfc3339(response.expires_ns),
            });
            if output == Output::Json {
                writeln!(out, "[{token}]")?;
            } else {
                writeln!(out, "{token}")?;
            }
        }
    }
    Ok(out.flush()?)
}
