//! `kai forward`.

use super::{Context, print, say};
use crate::{
    api::{ForwardRequest, client::failure},
    errors::{Code, Exit, Failure},
    text,
};
use http::Method;
use http_body_util::BodyExt;

/// Opens a port of this machine that leads to an agent, for as long as the command runs.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The port; 0 takes any that is free.
    port: u16,
    /// kClass:name@member, or kClass:name where only one member has it.
    agent: String,
}

pub(super) async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let request = ForwardRequest { port: args.port, agent: args.agent };
    let response = context.client.send(Method::POST, "/v1/forward", &request).await?;
    let (head, mut body) = response.into_parts();
    if !head.status.is_success() {
        let bytes = body.collect().await.map_err(|error| Code::Protocol.because(error))?.to_bytes();
        return Err(failure(head.status, &bytes));
    }
    loop {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => return Ok(Exit::Ok),
            frame = body.frame() => match frame {
                Some(Ok(frame)) => {
                    if let Some(line) = frame.data_ref() {
                        show(context, line);
                    }
                }
                _ => return Err(Code::NotRunning.because("the node has stopped")),
            }
        }
    }
}

fn show(context: &Context, line: &[u8]) {
    let Ok(opened) = serde_json::from_slice::<serde_json::Value>(line) else { return };
    if context.json {
        print(&format!("{opened}\n"));
        return;
    }
    let shown = |name: &str| text::clean(opened[name].as_str().unwrap_or_default());
    print(&format!("http://{}\n", shown("address")));
    say(&format!("leads to {} of {}; ends with Ctrl-C", shown("agent"), shown("member")));
}
