//! Who has a port: for a message that helps. Everything here may fail, and then less is said.

use {
    crate::{args::ServerArgs, client::Client},
    std::{
        fs,
        net::{IpAddr, SocketAddr},
        time::Duration,
    },
    tokio::time::timeout,
};

/// How long whoever listens may take to say what it is.
const PATIENCE: Duration = Duration::from_millis(500);
/// The state LISTEN in /proc/net/tcp (include/net/tcp_states.h).
const LISTENING: &str = "0A";

/// Says what listens at `address`: `a HealthScope 0.1.0 (process 4711, healthscope)`.
pub(super) async fn owner(address: SocketAddr) -> String {
    let args = ServerArgs {
        server: format!("http://{address}"),
        token_file: None,
        ca: None,
    };
    let status = match Client::new(&args) {
        Ok(client) => timeout(PATIENCE, client.status()).await.ok().and_then(Result::ok),
        Err(_) => None,
    };
    let what = match status {
        Some(status) => format!(
            "a HealthScope {}",
            healthscope_shared::one_line(&status.version, 40)
        ),
        None => "another program".to_owned(),
    };
    match process(address) {
        Some((id, name)) => format!(
            "{what} (process {id}, {})",
            healthscope_shared::one_line(&name, 40)
        ),
        None => what,
    }
}

/// The process that listens there, as far as this user may know.
fn process(address: SocketAddr) -> Option<(u32, String)> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .find_map(|table| table.lines().find_map(|line| listener(line, address)))?;
    let socket = format!("socket:[{inode}]");
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(id) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let Ok(descriptors) = fs::read_dir(entry.path().join("fd")) else {
            continue;
        };
        let has_it = descriptors.flatten().any(|descriptor| {
            fs::read_link(descriptor.path()).is_ok_and(|link| link.as_os_str() == socket.as_str())
        });
        if has_it {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            return Some((id, name.trim().to_owned()));
        }
    }
    None
}

/// The inode of a line of /proc/net/tcp, when it is a listener that stands in the way of `address`.
fn listener(line: &str, address: SocketAddr) -> Option<String> {
    let mut fields = line.split_whitespace();
    let local = fields.nth(1)?;
    let state = fields.nth(1)?;
    let inode = fields.nth(5)?;
    let (ip, port) = local.split_once(':')?;
    if state != LISTENING || u16::from_str_radix(port, 16).ok()? != address.port() {
        return None;
    }
    let ip = parse_ip(ip)?;
    (ip.is_unspecified() || ip.to_canonical() == address.ip().to_canonical()).then(|| inode.to_owned())
}

/// Addresses are groups of 32 bits, each written as a number of this machine.
fn parse_ip(text: &str) -> Option<IpAddr> {
    let mut bytes = Vec::new();
    for group in text.as_bytes().chunks(8) {
        let group = u32::from_str_radix(std::str::from_utf8(group).ok()?, 16).ok()?;
        bytes.extend(group.to_ne_bytes());
    }
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_owner_of_a_port_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let owner = owner(listener.local_addr().unwrap()).await;
        let expected = format!("another program (process {}, ", std::process::id());
        assert!(owner.starts_with(&expected), "{owner}");
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn lines_of_the_kernel_are_read() {
        let line = |local: &str, state: &str| {
            format!(
                "   0: {local} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000     0        0 4242 1 0"
            )
        };
        let address: SocketAddr = "127.0.0.1:7575".parse().unwrap();
        for (local, state, expected) in [
            ("0100007F:1D97", "0A", true),
            ("00000000:1D97", "0A", true),
            ("0100007F:1D97", "01", false),
            ("0100007F:1D98", "0A", false),
            ("0200007F:1D97", "0A", false),
        ] {
            assert_eq!(
                listener(&line(local, state), address).is_some(),
                expected,
                "{local} {state}"
            );
        }
    }
}
