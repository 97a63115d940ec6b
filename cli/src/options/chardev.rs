//! `-chardev`, and the short words of `-serial`, `-parallel` and `-monitor`.

use anura_chardev::{ChardevConfig, ChardevKind, SocketAddress, SocketConfig};

use crate::options::builder::Builder;
use crate::options::keyval::KeyValues;
use crate::options::nearest;

type Res<T> = Result<T, String>;

/// Kinds that exist.
pub(crate) const KINDS: [&str; 8] = ["null", "vc", "stdio", "file", "pipe", "pty", "socket", "ringbuf"];
/// Kinds of QEMU that are not there yet.
const LATER: [&str; 13] = [
    "udp",
    "parallel",
    "parport",
    "serial",
    "tty",
    "braille",
    "msmouse",
    "spicevmc",
    "spiceport",
    "hub",
    "testdev",
    "wctablet",
    "qemu-vdagent",
];

pub(crate) fn chardev(b: &mut Builder, kv: &mut KeyValues) -> Res<()> {
    let kind = kv.text("backend");
    let id = kv.text("id").ok_or("chardev: no id specified")?;
    let kind = kind.ok_or_else(|| format!("chardev: \"{id}\" missing backend"))?;
    if !id.starts_with(|c: char| c.is_ascii_alphabetic())
        || !id.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
    {
        return Err(
            "Parameter 'id' expects an identifier: a letter, then letters, digits, '-', '.', '_'".into()
        );
    }
    let mux = kv.switch("mux")?.unwrap_or(false);
    let logfile = kv.text("logfile").map(Into::into);
    let logappend = kv.switch("logappend")?.unwrap_or(false);
    let kind = parse_kind(&kind, kv)?;
    b.add_chardev(ChardevConfig { id, mux, logfile, logappend, kind })
}

fn parse_kind(kind: &str, kv: &mut KeyValues) -> Res<ChardevKind> {
    Ok(match kind {
        "null" => ChardevKind::Null,
        "vc" => {
            for key in ["width", "height", "cols", "rows"] {
                kv.number(key)?;
            }
            ChardevKind::Vc
        }
        "stdio" => ChardevKind::Stdio { signal: kv.switch("signal")?.unwrap_or(true) },
        "file" => ChardevKind::File {
            path: path(kv, "file")?.into(),
            append: kv.switch("append")?.unwrap_or(false),
            input: kv.text("input-path").map(Into::into),
        },
        "pipe" => ChardevKind::Pipe { path: path(kv, "pipe")?.into() },
        "pty" => ChardevKind::Pty { path: kv.text("path").map(Into::into) },
        "ringbuf" | "memory" => {
            let size = kv.size("size")?.unwrap_or(64 << 10);
            if !size.is_power_of_two() {
                return Err("size of ringbuf chardev must be power of two".into());
            }
            ChardevKind::Ringbuf { size }
        }
        "socket" => socket(kv)?,
        _ if LATER.contains(&kind) => return Err(format!("chardev type {kind} is not there yet")),
        _ => {
            let hint = match nearest(kind, KINDS) {
                Some(near) => format!("; did you mean '{near}'?"),
                None => "; -chardev help lists them".into(),
            };
            return Err(format!("'{kind}' is not a valid char driver name{hint}"));
        }
    })
}

fn path(kv: &mut KeyValues, kind: &str) -> Res<String> {
    let path = kv.text("path").filter(|p| !p.is_empty());
    path.ok_or_else(|| format!("chardev: {kind}: no filename given; add path=FILE"))
}

fn socket(kv: &mut KeyValues) -> Res<ChardevKind> {
    let path = kv.text("path");
    let fd = kv.text("fd");
    let host = kv.text("host");
    let port = kv.text("port");
    let abstract_name = kv.switch("abstract")?.unwrap_or(false);
    kv.switch("tight")?;
    let to = kv.number("to")?;
    let server = kv.switch("server")?.unwrap_or(false);
    let wait = kv.switch("wait")?;
    let (ipv4, ipv6) = (kv.switch("ipv4")?, kv.switch("ipv6")?);
    let _ = (ipv4, ipv6);
    kv.only("websocket", false, "websockets are not there yet")?;
    if kv.text("tls-creds").is_some() {
        return Err("chardev: socket: TLS is not there yet".into());
    }
    let address = match (path, fd, host.is_some() || port.is_some()) {
        (Some(path), None, false) => SocketAddress::Unix { path: path.into(), abstract_name },
        (None, Some(fd), false) => {
            SocketAddress::Fd { fd: fd.parse().map_err(|_| format!("file descriptor '{fd}' is no number"))? }
        }
        (None, None, true) => {
            let port = port.ok_or("chardev: socket: no port given")?;
            tcp(&host.unwrap_or_default(), &port, to)?
        }
        (None, None, false) => return Err("chardev: socket: no port given; add path=, port= or fd=".into()),
        _ => return Err("chardev: socket: 'path', 'host' and 'fd' are mutually exclusive".into()),
    };
    if wait.is_some() && !server {
        return Err("'wait' option is incompatible with socket in client connect mode".into());
    }
    let reconnect = kv.number("reconnect")?.unwrap_or(0);
    if reconnect > 0 && server {
        return Err("'reconnect' option is incompatible with socket in server listen mode".into());
    }
    Ok(ChardevKind::Socket(SocketConfig {
        address,
        server,
        wait: server && wait.unwrap_or(true),
        telnet: kv.switch("telnet")?.unwrap_or(false),
        nodelay: match (kv.switch("nodelay")?, kv.switch("delay")?) {
            (Some(no), _) => no,
            (None, delay) => delay == Some(false),
        },
        reconnect,
    }))
}

fn tcp(host: &str, port: &str, to: Option<u64>) -> Res<SocketAddress> {
    let number = |p: &str| p.parse::<u16>().map_err(|_| format!("port '{p}' is no number from 0 to 65535"));
    let to = match to {
        Some(t) => Some(u16::try_from(t).map_err(|_| format!("port '{t}' is no number from 0 to 65535"))?),
        None => None,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok(SocketAddress::Tcp { host, port: number(port)?, to })
}

/// A word such as `stdio`, `file:log` or `tcp:localhost:4444,server,nowait`.
pub(crate) fn legacy(word: &str, with_monitor: bool) -> Res<ChardevKind> {
    let (kind, rest) = word.split_once(':').unwrap_or((word, ""));
    let path = || match rest {
        "" => Err(format!("'{kind}' needs a path, as in {kind}:PATH")),
        p => Ok(p.to_owned()),
    };
    match kind {
        "null" => Ok(ChardevKind::Null),
        "vc" => Ok(ChardevKind::Vc),
        "stdio" => Ok(ChardevKind::Stdio { signal: !with_monitor }),
        "pty" => Ok(ChardevKind::Pty { path: Some(rest).filter(|r| !r.is_empty()).map(Into::into) }),
        "pipe" => Ok(ChardevKind::Pipe { path: path()?.into() }),
        "file" => {
            let (name, append) = match path()?.strip_suffix(",append=on") {
                Some(name) => (name.to_owned(), true),
                None => (path()?, false),
            };
            Ok(ChardevKind::File { path: name.into(), append, input: None })
        }
        "ringbuf" | "memory" => parse_kind(kind, &mut KeyValues::default()),
        "unix" | "tcp" | "telnet" => legacy_socket(kind, rest),
        _ if LATER.contains(&kind) || word.starts_with("/dev/") => {
            Err(format!("char driver '{kind}' is not there yet"))
        }
        _ => {
            let names =
                ["null", "vc", "stdio", "file", "pipe", "pty", "unix", "tcp", "telnet", "none", "mon"];
            let hint = match nearest(kind, names) {
                Some(near) => format!("; did you mean '{near}'?"),
                None => "; -chardev help lists them".into(),
            };
            Err(format!("'{word}' is not a valid char driver{hint}"))
        }
    }
}

fn legacy_socket(kind: &str, rest: &str) -> Res<ChardevKind> {
    let (address, options) = rest.split_once(',').unwrap_or((rest, ""));
    let mut text = match kind {
        "unix" if address.is_empty() => return Err("'unix' needs a path, as in unix:PATH".into()),
        "unix" => format!("path={address}"),
        _ => {
            let (host, port) = address
                .rsplit_once(':')
                .ok_or_else(|| format!("'{kind}' needs host and port, as in {kind}:localhost:4444"))?;
            format!("host={host},port={port}")
        }
    };
    if kind == "telnet" {
        text += ",telnet=on";
    }
    if !options.is_empty() {
        text = format!("{text},{options}");
    }
    let mut kv = KeyValues::parse(&text, None)?;
    let kind = socket(&mut kv)?;
    kv.done()?;
    Ok(kind)
}

pub(crate) fn serial(b: &mut Builder, word: &str) -> Res<()> {
    b.serial.push(word.to_owned());
    Ok(())
}

pub(crate) fn parallel(b: &mut Builder, word: &str) -> Res<()> {
    b.parallel.push(word.to_owned());
    Ok(())
}

pub(crate) fn debugcon(b: &mut Builder, word: &str) -> Res<()> {
    b.debugcon.push(word.to_owned());
    Ok(())
}

pub(crate) fn monitor(b: &mut Builder, word: &str) -> Res<()> {
    b.monitor.push(word.to_owned());
    Ok(())
}

pub(crate) fn mon(b: &mut Builder, kv: &mut KeyValues) -> Res<()> {
    let chardev = kv.needed("chardev")?;
    let id = kv.text("id");
    kv.switch("pretty")?;
    if kv.word("mode", &[("readline", false), ("control", true)])? == Some(true) {
        return Err("mode=control: QMP is not there yet; use mode=readline".into());
    }
    b.mon.push(anura_machine::config::MonitorConfig { id, chardev });
    Ok(())
}

pub(crate) fn echr(b: &mut Builder, text: &str) -> Res<()> {
    let key = crate::options::value::number("echr", text)?;
    b.config.escape_key = u8::try_from(key).map_err(|_| "Bad argument to echr: 0 to 255".to_owned())?;
    Ok(())
}
