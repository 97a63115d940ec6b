//! The little of telnet (RFC 854, 857, 858, 856) that turns a client into a character terminal.

const IAC: u8 = 255;
const DONT: u8 = 254;
const WILL: u8 = 251;
const DO: u8 = 253;
const SB: u8 = 250;
const SE: u8 = 240;
const BREAK: u8 = 243;
const BINARY: u8 = 0;
const ECHO: u8 = 1;
const SUPPRESS_GO_AHEAD: u8 = 3;

/// What a server says first: we echo, send no go-aheads, and both sides send eight bits.
pub(crate) const GREETING: [u8; 12] =
    [IAC, WILL, ECHO, IAC, WILL, SUPPRESS_GO_AHEAD, IAC, WILL, BINARY, IAC, DO, BINARY];

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Data,
    Command,
    Option,
    Subnegotiation,
    SubnegotiationCommand,
}

/// Takes the commands out of a stream.
#[derive(Debug, Default)]
pub(crate) struct Telnet {
    state: State,
}

impl Telnet {
    /// Keeps the data of the first `n` bytes at the front of `buf`; the number of data bytes, and
    /// whether a break was among them.
    pub(crate) fn filter(&mut self, buf: &mut [u8], n: usize) -> (usize, bool) {
        let (mut kept, mut saw_break) = (0, false);
        for i in 0..n {
            let b = buf[i];
            let mut keep = false;
            self.state = match (self.state, b) {
                (State::Data, IAC) => State::Command,
                (State::Data, _) => {
                    keep = true;
                    State::Data
                }
                (State::Command, IAC) => {
                    keep = true;
                    State::Data
                }
                (State::Command, BREAK) => {
                    saw_break = true;
                    State::Data
                }
                (State::Command, WILL..=DONT) => State::Option,
                (State::Command, SB) => State::Subnegotiation,
                (State::Command, _) | (State::Option, _) => State::Data,
                (State::Subnegotiation, IAC) => State::SubnegotiationCommand,
                (State::SubnegotiationCommand, SE) => State::Data,
                (State::Subnegotiation | State::SubnegotiationCommand, _) => State::Subnegotiation,
            };
            if keep {
                buf[kept] = b;
                kept += 1;
            }
        }
        (kept, saw_break)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_vanish_even_when_cut_and_a_doubled_iac_is_data() {
        let stream =
            [b'a', IAC, DO, ECHO, b'b', IAC, IAC, IAC, SB, 24, IAC, SE, b'c', IAC, BREAK, IAC, WILL, 3];
        for cut in 0..stream.len() {
            let mut telnet = Telnet::default();
            let (mut seen, mut broke) = (vec![], false);
            for part in [&stream[..cut], &stream[cut..]] {
                let mut buf = part.to_vec();
                let (n, b) = telnet.filter(&mut buf, part.len());
                seen.extend_from_slice(&buf[..n]);
                broke |= b;
            }
            assert_eq!(seen, [b'a', b'b', IAC, b'c'], "cut at {cut}");
            assert!(broke);
        }
    }
}
