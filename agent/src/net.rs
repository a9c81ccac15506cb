//! TCP by address, or by a name of `/etc/hosts`.
//!
//! Names are not looked up through the C library: it loads its name services at run time, which a statically linked
//! program cannot do safely, and a crash of the agent is the end of its kernel. The names of a DNS are not known here.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::{TcpListener, TcpStream};

/// Connects to the first address of `host` that answers.
///
/// # Errors
/// [`io::ErrorKind::NotFound`] for a name that is not known; otherwise that of the last address.
pub(crate) async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    TcpStream::connect(&addresses(host, port)?[..]).await
}

/// Listens on the first address of `host` that can be had.
///
/// # Errors
/// As [`connect`].
pub(crate) async fn listen(host: &str, port: u16) -> io::Result<TcpListener> {
    TcpListener::bind(&addresses(host, port)?[..]).await
}

fn addresses(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    let found = resolve(host, &hosts);
    if found.is_empty() {
        let reason = format!("`{host}` is neither an address nor a name of /etc/hosts in this kernel");
        return Err(io::Error::new(io::ErrorKind::NotFound, reason));
    }
    Ok(found.into_iter().map(|ip| SocketAddr::new(ip, port)).collect())
}

/// hosts(5): `ADDRESS NAME ALIAS.. # comment`.
fn resolve(host: &str, hosts: &str) -> Vec<IpAddr> {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    if let Ok(ip) = bare.parse() {
        return vec![ip];
    }
    let line = |line: &str| -> Option<IpAddr> {
        let mut words = line.split('#').next()?.split_ascii_whitespace();
        let ip = words.next()?.parse().ok()?;
        words.any(|name| name.eq_ignore_ascii_case(host)).then_some(ip)
    };
    let mut found: Vec<IpAddr> = hosts.lines().filter_map(line).collect();
    if found.is_empty() && host.eq_ignore_ascii_case("localhost") {
        // RFC 6761: so it is, whether or not a file says so.
        found = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTS: &str =
        "127.0.0.1 localhost\n::1 localhost ip6-localhost # both\n10.0.0.5\tdb DB.local\nbroken name\n";

    fn found(host: &str) -> Vec<String> {
        resolve(host, HOSTS).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn addresses_and_names_of_the_file_are_known() {
        assert_eq!(found("10.1.2.3"), ["10.1.2.3"]);
        assert_eq!((found("::1"), found("[::1]")), (vec!["::1".to_owned()], vec!["::1".to_owned()]));
        assert_eq!(found("localhost"), ["127.0.0.1", "::1"]);
        assert_eq!(
            (found("db"), found("db.LOCAL")),
            (vec!["10.0.0.5".to_owned()], vec!["10.0.0.5".to_owned()])
        );
        assert_eq!(resolve("localhost", "").len(), 2);
    }

    #[test]
    fn other_names_are_refused_by_name() {
        for host in ["name", "both", "#", "", "example.org"] {
            assert!(found(host).is_empty(), "{host}");
        }
        assert!(addresses("no.such.host", 1).unwrap_err().to_string().contains("no.such.host"));
    }
}
