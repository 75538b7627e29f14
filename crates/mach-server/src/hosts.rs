//! Whose requests are answered where no key is asked for: those that come to a name of this machine, from no page or from one
//! that may.
//!
//! A page of any site can make a browser send requests to a loopback address. What it may not do is read the answers; but once
//! its own name resolves to that address (DNS rebinding), the browser takes both for one site. The name stays in `Host`, and a
//! name is all that can be rebound: an address cannot.

use std::net::IpAddr;

use axum::http::{HeaderMap, HeaderValue, Uri, header};
use mach_api::{ApiError, ErrorKind};

use crate::layers::Origins;

/// Names that a server answers to besides addresses and `localhost`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hosts {
    any: bool,
    /// In lower case. `.example.org` stands for all names below `example.org`.
    names: Vec<String>,
}

impl Hosts {
    /// Reads names as a command line has them: `name`, `name:port` (the port does not matter), `*.example.org` for the names
    /// below `example.org`, `*` for any.
    pub fn parse(names: &[String]) -> Result<Self, String> {
        let mut hosts = Self::default();
        for text in names.iter().map(|name| name.trim()) {
            if text == "*" {
                hosts.any = true;
                continue;
            }
            let bare = text.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(text);
            let name = host_of(bare).filter(|name| is_name(name.trim_start_matches('.')));
            let wrong =
                || format!("`{text}` is no name of a host: it looks like example.org, or *.example.org");
            hosts.names.push(name.ok_or_else(wrong)?);
        }
        Ok(hosts)
    }

    /// Adds a name that the server listens on.
    pub fn and(mut self, name: &str) -> Self {
        self.names.push(name.to_ascii_lowercase());
        self
    }

    fn allows(&self, host: &str) -> bool {
        let listed = |name: &String| match name.strip_prefix('.') {
            Some(_) => host.len() > name.len() && host.ends_with(name.as_str()),
            None => host == name,
        };
        self.any || self.names.iter().any(listed)
    }

    /// Whether a request may be answered, by the host that it is for and by the page that sent it.
    pub(crate) fn check(
        &self,
        uri: &Uri,
        headers: &HeaderMap,
        cors: Option<&Origins>,
    ) -> Result<(), ApiError> {
        let asked = asked_host(uri, headers)?;
        if let Some((host, _)) = &asked
            && !(host.parse::<IpAddr>().is_ok() || is_localhost(host) || self.allows(host))
        {
            let message = format!(
                "this server does not answer to the name `{}`: it has no API key, and --allowed-hosts does not name it",
                clip(host)
            );
            return Err(ApiError::new(ErrorKind::HostNotAllowed, message));
        }
        for origin in headers.get_all(header::ORIGIN) {
            if !self.allows_origin(origin, asked.as_ref(), cors) {
                let message = format!(
                    "pages of `{}` may not use this server: it has no API key, and neither --cors-origin nor --allowed-hosts \
                     names them",
                    clip(&String::from_utf8_lossy(origin.as_bytes()))
                );
                return Err(ApiError::new(ErrorKind::OriginNotAllowed, message));
            }
        }
        Ok(())
    }

    /// Pages of this machine, of the server's own names, of the host that the request is for, and those of `--cors-origin`.
    fn allows_origin(
        &self,
        origin: &HeaderValue,
        asked: Option<&(String, String)>,
        cors: Option<&Origins>,
    ) -> bool {
        match cors {
            Some(Origins::Any) => return true,
            _ if self.any => return true,
            Some(Origins::These(list)) if list.contains(origin) => return true,
            _ => {}
        }
        let Some((_, authority)) = origin.to_str().ok().and_then(|text| text.split_once("://")) else {
            return false;
        };
        let Some(host) = host_of(authority) else { return false };
        let own = asked.is_some_and(|(_, asked)| asked.eq_ignore_ascii_case(authority));
        let loopback = host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        own || loopback || is_localhost(&host) || self.allows(&host)
    }
}

/// The host that a request is for, and the same as it was written; `None` for the old clients that name none. Browsers always do.
fn asked_host(uri: &Uri, headers: &HeaderMap) -> Result<Option<(String, String)>, ApiError> {
    let wrong = || ApiError::new(ErrorKind::InvalidRequest, "the `Host` of the request is not one host");
    let mut given = headers.get_all(header::HOST).iter();
    let first = given.next();
    if given.next().is_some() {
        return Err(wrong());
    }
    let text = match (uri.authority(), first) {
        (Some(authority), _) => authority.as_str(),
        (None, Some(value)) => value.to_str().map_err(|_| wrong())?,
        (None, None) => return Ok(None),
    };
    let host = host_of(text).ok_or_else(wrong)?;
    Ok(Some((host, text.to_owned())))
}

/// The host of `host` or `host:port`, in lower case, without brackets and without the dot of the root.
fn host_of(authority: &str) -> Option<String> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            address.parse::<std::net::Ipv6Addr>().ok()?;
            (address, port.strip_prefix(':').or(port.is_empty().then_some(""))?)
        }
        None => authority.split_once(':').unwrap_or((authority, "")),
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    let plain = !host.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| host.to_ascii_lowercase())
}

/// `localhost` and the names below it: browsers resolve them to loopback addresses, and nobody can own one.
fn is_localhost(host: &str) -> bool {
    host == "localhost" || host.ends_with(".localhost")
}

fn is_name(text: &str) -> bool {
    let letter = |b: u8| b.is_ascii_alphanumeric() || b"-_.:".contains(&b);
    !text.is_empty() && text.bytes().all(letter)
}

fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(allowed: &[&str], host: &str, origin: Option<&str>, cors: &[&str]) -> Result<(), ErrorKind> {
        let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let hosts = Hosts::parse(&owned(allowed)).unwrap();
        let cors = Origins::parse(&owned(cors)).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
        }
        hosts.check(&Uri::from_static("/v1/models"), &headers, cors.as_ref()).map_err(|e| e.kind)
    }

    #[test]
    fn addresses_and_names_of_this_machine_are_answered_and_others_are_not() {
        let host = |host: &str| check(&["gpu-box", "*.lab.example:8080"], host, None, &[]);
        for good in [
            "localhost",
            "LocalHost:8080",
            "localhost.",
            "app.localhost:1",
            "127.0.0.1:8080",
            "127.9.9.9",
            "[::1]:8080",
            "[::1]",
            "192.168.1.7:8080",
            "gpu-box:8080",
            "GPU-BOX",
            "a.lab.example",
            "a.b.lab.example:1",
        ] {
            assert_eq!(host(good), Ok(()), "{good}");
        }
        for bad in [
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "notlocalhost",
            "127.0.0.1.evil.example",
            "0x7f000001",
            "2130706433",
            "127.1",
            "lab.example",
            "xlab.example",
            ".lab.example",
        ] {
            assert_eq!(host(bad), Err(ErrorKind::HostNotAllowed), "{bad}");
        }
        for strange in ["", ":80", "[::1", "[x]", "a:b", "a:1:2", "localhost@evil.example:80x"] {
            assert_eq!(host(strange), Err(ErrorKind::InvalidRequest), "{strange}");
        }
        for origin in ["https://evil.example", "null"] {
            assert_eq!(check(&["*"], "evil.example", Some(origin), &[]), Ok(()));
        }
    }

    #[test]
    fn the_target_of_a_proxy_request_counts_and_no_host_is_no_browser() {
        let hosts = Hosts::default();
        let mut headers = HeaderMap::new();
        assert!(hosts.check(&Uri::from_static("/"), &headers, None).is_ok());
        headers.insert(header::HOST, HeaderValue::from_static("localhost"));
        let target = Uri::from_static("http://evil.example/v1/models");
        assert_eq!(hosts.check(&target, &headers, None).unwrap_err().kind, ErrorKind::HostNotAllowed);
        headers.append(header::HOST, HeaderValue::from_static("localhost"));
        assert_eq!(
            hosts.check(&Uri::from_static("/"), &headers, None).unwrap_err().kind,
            ErrorKind::InvalidRequest
        );
    }

    #[test]
    fn pages_are_those_of_this_machine_or_of_named_sites() {
        let origin = |origin| {
            check(
                &["box.example"],
                "127.0.0.1:8080",
                Some(origin),
                &["https://app.example", "app://obsidian.md"],
            )
        };
        for good in [
            "http://localhost:3000",
            "http://127.0.0.1:8080",
            "http://[::1]:3000",
            "tauri://localhost",
            "https://app.example",
            "http://box.example",
            "app://obsidian.md",
        ] {
            assert_eq!(origin(good), Ok(()), "{good}");
        }
        for bad in [
            "https://evil.example",
            "null",
            "",
            "http://192.168.1.7",
            "https://app.example:444",
            "http://x.app.example",
            "file://",
        ] {
            assert_eq!(origin(bad), Err(ErrorKind::OriginNotAllowed), "{bad}");
        }
        // A page that the host of the request itself serves, say through a proxy.
        assert_eq!(check(&[], "192.168.1.7:8080", Some("http://192.168.1.7:8080"), &[]), Ok(()));
        assert!(check(&[], "192.168.1.7:8080", Some("http://192.168.1.7:9999"), &[]).is_err());
        assert_eq!(check(&[], "127.0.0.1", Some("null"), &["*"]), Ok(()));
    }

    #[test]
    fn names_are_names() {
        for bad in ["", "a b", "http://a", "a/b", "*a", "**.a", "*."] {
            assert!(Hosts::parse(&[bad.to_owned()]).is_err(), "{bad}");
        }
    }
}
