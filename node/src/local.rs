//! Listeners on loopback: who may ask, and how many at once. Shared by `kai forward` and the HTTP API.
//!
//! A port on loopback is within reach of every web page that a browser on this machine shows. So only requests for our
//! own names are answered, which a page cannot make for a name it pointed here itself, and none that a browser made
//! for a page of another site.

use crate::errors::{Code, Failure};
use http::{HeaderMap, HeaderName, header};
use std::{future::Future, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;

/// The names of this machine's loopback, as a `Host` header has them.
const NAMES: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];
/// What browsers say about where a request comes from.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// Pause after an error of the listener, which says that the process has no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why a request is not for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotLocal {
    /// Its `Host` is none of our names with our port.
    #[error("only localhost, 127.0.0.1 and [::1] with this port are answered here")]
    Host,
    /// A page of another site made it.
    #[error("requests of other sites are not answered")]
    CrossSite,
}

impl From<NotLocal> for Failure {
    fn from(why: NotLocal) -> Self {
        let code = match why {
            NotLocal::Host => Code::WrongHost,
            NotLocal::CrossSite => Code::CrossSite,
        };
        code.because(why)
    }
}

/// Checks that a request to the listener on `port` names it, once, and comes from no page of another site.
///
/// # Errors
/// Why it is not answered.
pub fn check(headers: &HeaderMap, port: u16) -> Result<(), NotLocal> {
    if !is_own(only(headers, &header::HOST).ok_or(NotLocal::Host)?, "", port) {
        return Err(NotLocal::Host);
    }
    for site in headers.get_all(SEC_FETCH_SITE) {
        if site != "same-origin" && site != "none" {
            return Err(NotLocal::CrossSite);
        }
    }
    // WebSocket handshakes carry no fetch metadata in some browsers; they all say where their page comes from.
    for origin in headers.get_all(header::ORIGIN) {
        if !is_own(origin.as_bytes(), "http://", port) {
            return Err(NotLocal::CrossSite);
        }
    }
    Ok(())
}

/// The value of a field that is there exactly once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a [u8]> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then(|| value.as_bytes())
}

fn is_own(text: &[u8], scheme: &str, port: u16) -> bool {
    NAMES.iter().any(|name| {
        text == format!("{scheme}{name}:{port}").as_bytes()
            // A client leaves out the port that the scheme has anyway.
            || (port == 80 && text == format!("{scheme}{name}").as_bytes())
    })
}

/// Serves up to `places_max` connections at once until `stop`, which ends them too. More wait in the system's queue.
pub async fn accept<F>(
    listener: TcpListener,
    places_max: usize,
    stop: CancellationToken,
    serve: impl Fn(TcpStream) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(places_max));
    loop {
        let next = async { (places.clone().acquire_owned().await, listener.accept().await) };
        let (place, accepted) = tokio::select! {
            () = stop.cancelled() => return,
            next = next => next,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        // What an answer lacks in size it should not gain in delay; a connection that is gone already shows later.
        let _ = stream.set_nodelay(true);
        let (serving, stop) = (serve(stream), stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = serving => {}
            }
            drop(place);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn only_our_own_names_are_answered() {
        for host in ["localhost:9000", "127.0.0.1:9000", "[::1]:9000"] {
            assert_eq!(check(&headers(&[("host", host)]), 9000), Ok(()), "{host}");
        }
        let foreign = [
            "localhost",
            "localhost:9001",
            "evil.example:9000",
            "127.0.0.1.evil.example:9000",
            "LOCALHOST:9000",
            "",
        ];
        for host in foreign {
            assert_eq!(check(&headers(&[("host", host)]), 9000), Err(NotLocal::Host), "{host}");
        }
        assert_eq!(check(&HeaderMap::new(), 9000), Err(NotLocal::Host));
        assert_eq!(check(&headers(&[("host", "localhost")]), 80), Ok(()));
        let mut twice = headers(&[("host", "localhost:9000")]);
        twice.append(header::HOST, HeaderValue::from_static("evil.example:9000"));
        assert_eq!(check(&twice, 9000), Err(NotLocal::Host));
    }

    #[test]
    fn foreign_pages_are_not_answered() {
        let from = |site| headers(&[("host", "localhost:9000"), ("sec-fetch-site", site)]);
        for (site, answered) in
            [("cross-site", false), ("same-site", false), ("", false), ("same-origin", true), ("none", true)]
        {
            assert_eq!(check(&from(site), 9000).is_ok(), answered, "{site}");
        }
        let page = |origin| headers(&[("host", "localhost:9000"), ("origin", origin)]);
        assert_eq!(check(&page("http://localhost:9000"), 9000), Ok(()));
        for foreign in
            ["https://evil.example", "http://localhost:9001", "null", "http://localhost:9000.evil.example"]
        {
            assert_eq!(check(&page(foreign), 9000), Err(NotLocal::CrossSite), "{foreign}");
        }
    }
}
