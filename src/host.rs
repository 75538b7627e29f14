//! Where to listen, and which names requests may be for.

use std::net::{IpAddr, ToSocketAddrs as _};

use mach_server::Hosts;

use crate::Exit;

/// An address to listen on, with its name if it was given by one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    name: Option<String>,
    /// The address.
    pub address: IpAddr,
}

impl Host {
    /// An address, or a name that has one.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        if let Ok(address) = bare.parse() {
            return Ok(Self { name: None, address });
        }
        let mut found: Vec<IpAddr> =
            (bare, 0).to_socket_addrs().map_err(|e| e.to_string())?.map(|a| a.ip()).collect();
        // Clients that say `localhost` try both families; servers of this kind are expected on the older one.
        found.sort_by_key(IpAddr::is_ipv6);
        let address = found.first().copied().ok_or_else(|| "this name has no address".to_owned())?;
        Ok(Self { name: Some(bare.to_owned()), address })
    }

    /// The names of `--allowed-hosts`, and the one that is listened on; `None` if there is nothing to add to what the server does
    /// by itself.
    pub(crate) fn allowed(&self, names: &[String], has_key: bool) -> Result<Option<Hosts>, Exit> {
        let hosts = Hosts::parse(names).map_err(|e| Exit::input(format!("--allowed-hosts: {e}")))?;
        Ok(match self.name.as_deref().filter(|_| !has_key || !names.is_empty()) {
            Some(name) => Some(hosts.and(name)),
            None => (!names.is_empty()).then_some(hosts),
        })
    }
}
