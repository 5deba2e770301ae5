//! `kai call`.

use super::{Context, say};
use crate::{
    api::{CallHead, CallRequest, ServiceAnswered, client::failure},
    errors::{Code, Exit, Failure},
    text,
};
use http::Method;
use http_body_util::BodyExt;
use kos_protocol::limits::NAME_BYTES_MAX;
use std::io::{Read, Write};

/// Calls an agent, or a service by its name; its answer goes to standard output as it comes.
#[derive(Debug, clap::Args)]
#[command(disable_version_flag = true)]
pub struct Args {
    /// kClass:name@member, or kClass:name where only one member has it. Or service:NAME, whoever offers the highest
    /// version of it; service:NAME@member, that member or who stands in for it.
    agent: String,
    /// Which versions of a service will do, for instance '^1.2' or '>=1, <3'; any when absent.
    #[arg(long, value_name = "RANGE")]
    version: Option<String>,
    /// Path with its query.
    #[arg(default_value = "/")]
    path: String,
    /// HTTP method.
    #[arg(long, short = 'X', default_value = "GET")]
    method: String,
    /// A header, as `Name: value`. May be given several times.
    #[arg(long = "header", short = 'H', value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// The body; `@FILE` for a file, `@-` for standard input. At most 8 MiB; use `kai forward` for more.
    #[arg(long, short = 'd')]
    data: Option<String>,
    /// Has the call executed at most once, however often it is made with this key within a day; 1 to 64 bytes.
    #[arg(long, value_name = "KEY", value_parser = key)]
    idempotency_key: Option<String>,
}

fn key(text: &str) -> Result<String, String> {
    match text.len() {
        1..=NAME_BYTES_MAX => Ok(text.to_owned()),
        bytes => Err(format!("a key has 1 to {NAME_BYTES_MAX} bytes, not {bytes}")),
    }
}

/// Longest body.
const BODY_BYTES_MAX: u64 = 8 * 1024 * 1024;

pub(super) async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let headers = args.headers.iter().map(|header| split(header)).collect::<Result<_, _>>()?;
    let body = args.data.map(|data| read_body(&data)).transpose()?.unwrap_or_default();
    let request = CallRequest {
        agent: args.agent,
        version: args.version,
        method: args.method,
        path: args.path,
        headers,
        body: data_encoding::BASE64.encode(&body),
        idempotency_key: args.idempotency_key,
    };
    let response = context.client.send(Method::POST, "/v1/call", &request).await?;
    let (head, mut body) = response.into_parts();
    if !head.status.is_success() {
        let bytes = body.collect().await.map_err(|error| Code::Protocol.because(error))?.to_bytes();
        return Err(failure(head.status, &bytes));
    }
    let answered: Option<CallHead> = head
        .headers
        .get("x-kai-call")
        .and_then(|value| value.to_str().ok())
        .and_then(|value| serde_json::from_str(value).ok());
    let service = answered.as_ref().and_then(|answered| answered.service.as_ref());
    if let Some(ServiceAnswered { agent, member_name, instead_of: Some(first), .. }) = service
        && !context.json
    {
        let line = format!("{agent}@{member_name} answers instead of {first}");
        say(&text::clean(&line));
    }
    let mut out = std::io::stdout().lock();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Code::CallCutShort.plain())?;
        if let Some(data) = frame.data_ref()
            && out.write_all(data).and_then(|()| out.flush()).is_err()
        {
            // Whoever read our output has enough.
            return Ok(Exit::Ok);
        }
    }
    match answered {
        Some(answered) if answered.status >= 400 => {
            Err(Code::UpstreamStatus.because(format!("the service answered {}", answered.status)))
        }
        Some(answered) if context.json => {
            say(&format!("{}", serde_json::json!(crate::api::answer(&answered))));
            Ok(Exit::Ok)
        }
        _ => Ok(Exit::Ok),
    }
}

fn split(header: &str) -> Result<(String, String), Failure> {
    let (name, value) = header
        .split_once(':')
        .ok_or_else(|| Code::Usage.because(format!("`{header}` is not `Name: value`")))?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

fn read_body(data: &str) -> Result<Vec<u8>, Failure> {
    let Some(source) = data.strip_prefix('@') else { return Ok(data.as_bytes().to_vec()) };
    let mut body = Vec::new();
    let read = match source {
        "-" => std::io::stdin().take(BODY_BYTES_MAX + 1).read_to_end(&mut body),
        file => {
            std::fs::File::open(file).and_then(|file| file.take(BODY_BYTES_MAX + 1).read_to_end(&mut body))
        }
    };
    read.map_err(|error| Code::Usage.because(format!("{source}: {error}")))?;
    if body.len() as u64 > BODY_BYTES_MAX {
        return Err(Code::CallTooLarge.because("the body is above 8 MiB").hint("kai forward 0 AGENT"));
    }
    Ok(body)
}
