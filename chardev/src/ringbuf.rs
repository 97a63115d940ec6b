//! Memory that keeps the last bytes, for logs that somebody reads later.

use std::collections::VecDeque;

use crate::ChardevError;
use crate::backend::{Backend, Input};
use crate::chardev::FdInterest;

/// Largest ring: the size comes from a user, not a guest, yet a typing mistake should not take the host.
const MAX: u64 = 1 << 30;

pub(crate) struct Ring {
    bytes: VecDeque<u8>,
    size: usize,
}

impl Ring {
    pub(crate) fn new(size: u64) -> Result<Self, ChardevError> {
        if !size.is_power_of_two() || size > MAX {
            return Err(ChardevError::RingSize(size));
        }
        Ok(Self { bytes: VecDeque::new(), size: size as usize })
    }
}

impl Backend for Ring {
    fn interests(&self, _: bool, _: bool, _: &mut Vec<FdInterest>) {}

    fn read(&mut self, _: &mut [u8]) -> Input {
        Input::None
    }

    fn write(&mut self, buf: &[u8]) -> usize {
        self.bytes.extend(&buf[buf.len().saturating_sub(self.size)..]);
        let over = self.bytes.len().saturating_sub(self.size);
        self.bytes.drain(..over);
        buf.len()
    }

    fn filename(&self) -> String {
        "ringbuf".into()
    }

    fn ring_read(&mut self, max: usize) -> Option<Vec<u8>> {
        let n = max.min(self.bytes.len());
        Some(self.bytes.drain(..n).collect())
    }
}
