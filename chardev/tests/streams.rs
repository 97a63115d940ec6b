//! Chardevs against real pipes, sockets, ptys and files, pumped by hand.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anura_chardev::*;
use parking_lot::Mutex;

/// A front end that keeps what it gets.
struct Keep {
    data: Mutex<Vec<u8>>,
    events: Mutex<Vec<CharEvent>>,
    room: AtomicUsize,
    writable: AtomicUsize,
}

impl Keep {
    fn new(room: usize) -> Arc<Self> {
        Arc::new(Self {
            data: Mutex::default(),
            events: Mutex::default(),
            room: AtomicUsize::new(room),
            writable: AtomicUsize::new(0),
        })
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.data.lock()).into_owned()
    }
}

impl CharFrontend for Keep {
    fn can_receive(&self) -> usize {
        self.room.load(Ordering::Relaxed)
    }
    fn receive(&self, bytes: &[u8]) {
        let left = self.can_receive().checked_sub(bytes.len()).expect("no more than there was room for");
        self.room.store(left, Ordering::Relaxed);
        self.data.lock().extend_from_slice(bytes);
    }
    fn event(&self, event: CharEvent) {
        self.events.lock().push(event);
    }
    fn writable(&self) {
        self.writable.fetch_add(1, Ordering::Relaxed);
    }
}

fn open(kind: ChardevKind) -> Chardev {
    Chardev::open(&ChardevConfig::new("c", kind), &OpenOptions::default()).unwrap()
}

fn attach(c: &Chardev, room: usize) -> (CharBackend, Arc<Keep>) {
    let (line, front) = (c.claim().unwrap(), Keep::new(room));
    line.set_frontend(front.clone());
    (line, front)
}

/// Pumps until `done`; a test that would hang fails instead.
fn until(c: &Chardev, what: &str, mut done: impl FnMut() -> bool) {
    // A pump may return early for no reason, so it is time that counts; far more than any of this takes.
    let end = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < end, "{what} never came");
        pump(&[c], Some(Duration::from_millis(10)));
    }
}

fn socket(address: SocketAddress, server: bool) -> SocketConfig {
    SocketConfig { address, server, wait: false, telnet: false, nodelay: false, reconnect: 0 }
}

fn unix(path: &Path) -> SocketAddress {
    SocketAddress::Unix { path: path.into(), abstract_name: false }
}

#[test]
fn a_unix_server_serves_one_client_after_another() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let c = open(ChardevKind::Socket(socket(unix(&path), true)));
    let (line, front) = attach(&c, 1000);
    assert!(c.filename().starts_with("disconnected:unix:"), "{}", c.filename());
    assert_eq!(line.write(b"into the void"), 13);
    for round in 0..2 {
        let mut client = UnixStream::connect(&path).unwrap();
        until(&c, "the connection", || c.connected());
        client.write_all(b"hello").unwrap();
        until(&c, "the data", || front.text().len() == 5 * (round + 1));
        assert_eq!(line.write(b"answer"), 6);
        let mut buf = [0; 6];
        client.read_exact(&mut buf).unwrap();
        assert_eq!(&buf, b"answer", "what was sent before the connection is gone");
        drop(client);
        until(&c, "the hang-up", || !c.connected());
    }
    let (o, x) = (CharEvent::Opened, CharEvent::Closed);
    until(&c, "the events", || *front.events.lock() == [o, x, o, x]);
    drop((line, c));
    assert!(!path.exists(), "the socket goes with its server");
}

#[test]
fn a_server_that_died_leaves_a_socket_that_the_next_one_takes_but_a_live_one_keeps_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    drop(UnixListener::bind(&path).unwrap());
    let first = open(ChardevKind::Socket(socket(unix(&path), true)));
    let config = ChardevConfig::new("d", ChardevKind::Socket(socket(unix(&path), true)));
    let err = Chardev::open(&config, &OpenOptions::default()).unwrap_err().to_string();
    assert!(err.contains("Failed to bind socket to") && err.contains("in use"), "{err}");
    drop(first);
}

#[test]
fn a_telnet_client_is_greeted_and_its_commands_are_not_data() {
    let tcp = SocketAddress::Tcp { host: "127.0.0.1".into(), port: 0, to: None };
    let c = open(ChardevKind::Socket(SocketConfig { telnet: true, ..socket(tcp, true) }));
    let (_line, front) = attach(&c, 100);
    let name = c.filename();
    let port = name.trim_end_matches(",server=on").rsplit(':').next().unwrap().parse::<u16>().unwrap();
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    until(&c, "the connection", || c.connected());
    let mut greeting = [0; 12];
    client.read_exact(&mut greeting).unwrap();
    assert_eq!(greeting[..3], [255, 251, 1]);
    client.write_all(&[255, 253, 1, b'h', b'i', 255, 243]).unwrap();
    until(&c, "the data", || front.text() == "hi");
}

#[test]
fn a_client_connects_again_after_the_server_was_away() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let tcp = SocketAddress::Tcp { host: "127.0.0.1".into(), port, to: None };
    let c = open(ChardevKind::Socket(SocketConfig { reconnect: 1, ..socket(tcp, false) }));
    let (line, _front) = attach(&c, 100);
    drop(listener.accept().unwrap());
    until(&c, "the hang-up", || !c.connected());
    until(&c, "the second connection", || c.connected());
    let (mut again, _) = listener.accept().unwrap();
    line.write_all(b"back");
    let mut buf = [0; 4];
    again.read_exact(&mut buf).unwrap();
    assert_eq!(&buf, b"back");
}

#[test]
fn an_inherited_descriptor_becomes_a_stream() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let c = open(ChardevKind::Socket(socket(SocketAddress::Fd { fd: ours.as_raw_fd() }, false)));
    let (line, front) = attach(&c, 100);
    theirs.write_all(b"x").unwrap();
    until(&c, "the data", || front.text() == "x");
    line.write_all(b"y");
    let mut buf = [0; 1];
    theirs.read_exact(&mut buf).unwrap();
    assert_eq!(&buf, b"y");
}

#[test]
fn a_front_end_without_room_holds_the_input_back_until_it_has_some() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let c = open(ChardevKind::Socket(socket(SocketAddress::Fd { fd: ours.as_raw_fd() }, false)));
    let (line, front) = attach(&c, 3);
    let woken = Arc::new(AtomicUsize::new(0));
    let w = woken.clone();
    c.set_waker(Arc::new(move || {
        w.fetch_add(1, Ordering::Relaxed);
    }));
    theirs.write_all(b"abcdefgh").unwrap();
    until(&c, "the first part", || front.text() == "abc");
    assert!(c.interests().is_empty(), "nothing to wait for while there is no room");
    front.room.store(5, Ordering::Relaxed);
    line.accept_input();
    assert_eq!(woken.load(Ordering::Relaxed), 1);
    until(&c, "the rest", || front.text() == "abcdefgh");
}

#[test]
fn a_slow_reader_cuts_writes_short_and_gets_every_byte_in_the_end() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let c = open(ChardevKind::Socket(socket(SocketAddress::Fd { fd: ours.as_raw_fd() }, false)));
    let (line, front) = attach(&c, 0);
    let pattern: Vec<u8> = (0..4000u32).map(|i| (i % 251) as u8).collect();
    let mut sent = 0;
    let refused = loop {
        let n = line.write(&pattern);
        sent += n;
        if n < pattern.len() {
            break n;
        }
        assert!(sent < 100 << 20, "the buffer has no bound");
    };
    assert!(c.interests().iter().any(|i| i.write));
    assert_eq!(front.writable.load(Ordering::Relaxed), 0);
    let reader = std::thread::spawn(move || {
        let mut all = vec![0; sent];
        theirs.read_exact(&mut all).unwrap();
        all
    });
    until(&c, "room", || front.writable.load(Ordering::Relaxed) == 1);
    c.drain(Duration::from_secs(10));
    let all = reader.join().unwrap();
    let want: Vec<u8> = pattern.iter().copied().cycle().take(4000 * (sent / 4000)).collect();
    assert_eq!(all[..want.len()], want[..]);
    assert_eq!(all[want.len()..], pattern[..refused]);
}

fn mux_on_pair() -> (Chardev, UnixStream, Arc<Mutex<Vec<MuxCommand>>>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let kind = ChardevKind::Socket(socket(SocketAddress::Fd { fd: ours.as_raw_fd() }, false));
    let commands: Arc<Mutex<Vec<MuxCommand>>> = Arc::default();
    let sink = commands.clone();
    let options = OpenOptions { escape: 1, on_command: Arc::new(move |command| sink.lock().push(command)) };
    let config = ChardevConfig { mux: true, ..ChardevConfig::new("m", kind) };
    (Chardev::open(&config, &options).unwrap(), theirs, commands)
}

#[test]
fn the_escape_key_moves_the_input_sends_breaks_and_ends_the_emulator() {
    let (c, mut terminal, commands) = mux_on_pair();
    let ((serial_line, serial), (_m, monitor)) = (attach(&c, 100), attach(&c, 100));
    terminal.write_all(b"ls\r\x01cinfo\r\x01c\x01b\x01\x01\x01h\x01x").unwrap();
    until(&c, "the exit", || !commands.lock().is_empty());
    assert_eq!(*commands.lock(), [MuxCommand::Exit]);
    assert_eq!((serial.text().as_str(), monitor.text().as_str()), ("ls\r\x01", "info\r"));
    let opened = CharEvent::Opened;
    assert_eq!(*serial.events.lock(), [opened, CharEvent::FocusOut, CharEvent::FocusIn, CharEvent::Break]);
    assert_eq!(*monitor.events.lock(), [opened, CharEvent::FocusIn, CharEvent::FocusOut]);
    serial_line.write_all(b"out of focus or not");
    let mut seen = vec![0; 4096];
    let n = terminal.read(&mut seen).unwrap();
    let text = String::from_utf8_lossy(&seen[..n]).into_owned();
    assert!(text.contains("C-a x    exit emulator") && text.ends_with("out of focus or not"), "{text}");
}

#[test]
fn escapes_work_while_the_guest_reads_nothing() {
    let (c, mut terminal, commands) = mux_on_pair();
    let (_line, serial) = attach(&c, 0);
    terminal.write_all(&[b'z'; 200]).unwrap();
    terminal.write_all(b"\x01x").unwrap();
    until(&c, "the exit", || !commands.lock().is_empty());
    serial.room.store(1000, Ordering::Relaxed);
    until(&c, "what was typed before", || serial.text().len() == 200);
}

#[test]
fn timestamps_stand_before_lines_once_switched_on() {
    let (c, mut terminal, _) = mux_on_pair();
    let (line, _front) = attach(&c, 0);
    terminal.write_all(b"\x01t\x01b").unwrap();
    until(&c, "the keys", || _front.events.lock().contains(&CharEvent::Break));
    line.write_all(b"one\ntwo\n");
    let mut seen = [0; 256];
    let n = terminal.read(&mut seen).unwrap();
    let text = String::from_utf8_lossy(&seen[..n]).into_owned();
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].starts_with("[00:00:") && lines[0].ends_with("] one"), "{text}");
    assert!(lines[1].ends_with("] two"), "{text}");
}

#[test]
fn a_pty_carries_bytes_both_ways_and_tells_where_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("tty");
    let c = open(ChardevKind::Pty { path: Some(link.clone()) });
    let (line, front) = attach(&c, 100);
    assert!(c.notice().unwrap().contains("/dev/pts/"), "{:?}", c.notice());
    let mut tty = std::fs::File::options().read(true).write(true).open(&link).unwrap();
    tty.write_all(b"in\r").unwrap();
    until(&c, "the data", || front.text() == "in\r");
    line.write_all(b"out\n");
    let mut buf = [0; 4];
    tty.read_exact(&mut buf).unwrap();
    assert_eq!(&buf, b"out\n");
    for _ in 0..64 {
        assert_eq!(line.write(&[0; 4096]), 4096, "nobody reads, and the guest goes on");
    }
}

#[test]
fn files_and_logs_are_truncated_or_kept_as_asked() {
    let dir = tempfile::tempdir().unwrap();
    let (out, log) = (dir.path().join("out"), dir.path().join("log"));
    for (append, want) in [(false, "one"), (true, "oneone"), (false, "one")] {
        let kind = ChardevKind::File { path: out.clone(), append, input: None };
        let config =
            ChardevConfig { logfile: Some(log.clone()), logappend: append, ..ChardevConfig::new("f", kind) };
        let c = Chardev::open(&config, &OpenOptions::default()).unwrap();
        c.claim().unwrap().write_all(b"one");
        assert_eq!(std::fs::read_to_string(&out).unwrap(), want);
        assert_eq!(std::fs::read_to_string(&log).unwrap(), want);
    }
}

#[test]
fn a_ring_keeps_the_last_bytes() {
    let c = open(ChardevKind::Ringbuf { size: 4 });
    let line = c.claim().unwrap();
    line.write_all(b"abc");
    line.write_all(b"defg");
    assert_eq!(c.ring_read(3).unwrap(), b"def");
    assert_eq!(c.ring_read(9).unwrap(), b"g");
    let odd = ChardevConfig::new("r", ChardevKind::Ringbuf { size: 5 });
    assert!(Chardev::open(&odd, &OpenOptions::default()).is_err());
}

#[test]
fn a_stream_has_one_front_end_and_errors_name_what_failed() {
    let c = open(ChardevKind::Null);
    let line = c.claim().unwrap();
    assert_eq!(line.write(b"gone"), 4);
    assert_eq!(c.claim().unwrap_err().to_string(), "chardev 'c' is already in use");
    assert_eq!(CharBackend::disconnected().write(b"x"), 1);
    let bad = [
        ChardevKind::File { path: "/nonexistent/f".into(), append: false, input: None },
        ChardevKind::Pipe { path: "/nonexistent/p".into() },
        ChardevKind::Socket(socket(unix(Path::new("/nonexistent/s")), true)),
        ChardevKind::Socket(socket(unix(Path::new("/nonexistent/s")), false)),
        ChardevKind::Socket(socket(SocketAddress::Fd { fd: 9999 }, false)),
    ];
    for kind in bad {
        let err = Chardev::open(&ChardevConfig::new("c", kind), &OpenOptions::default());
        let err = err.unwrap_err().to_string();
        assert!(err.contains("nonexistent") || err.contains("9999"), "{err}");
        assert!(!err.contains('\n'), "{err}");
    }
}
