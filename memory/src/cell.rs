//! Register handlers made of a device's cell and two plain functions.

use std::sync::Arc;

use anura_vmcore::DeviceCell;

use crate::{Access, IoHandler};

struct CellIo<T> {
    cell: DeviceCell<T>,
    read: fn(&mut T, Access) -> u64,
    write: fn(&mut T, Access, u64),
}

impl<T: Send + 'static> IoHandler for CellIo<T> {
    fn read(&self, a: Access) -> u64 {
        (self.read)(&mut self.cell.lock(), a)
    }

    fn write(&self, a: Access, value: u64) {
        (self.write)(&mut self.cell.lock(), a, value);
    }

    fn read_bulk(&self, a: Access, buf: &mut [u8]) {
        // One lock for the whole string, not one per element.
        let mut device = self.cell.lock();
        for piece in buf.chunks_mut(a.width.bytes()) {
            let value = (self.read)(&mut device, a).to_le_bytes();
            piece.copy_from_slice(&value[..piece.len()]);
        }
    }

    fn write_bulk(&self, a: Access, buf: &[u8]) {
        let mut device = self.cell.lock();
        for piece in buf.chunks(a.width.bytes()) {
            (self.write)(&mut device, a, crate::access::le_value(piece));
        }
    }
}

struct CellIoBulk<T> {
    single: CellIo<T>,
    read_bulk: fn(&mut T, Access, &mut [u8]),
    write_bulk: fn(&mut T, Access, &[u8]),
}

impl<T: Send + 'static> IoHandler for CellIoBulk<T> {
    fn read(&self, a: Access) -> u64 {
        self.single.read(a)
    }

    fn write(&self, a: Access, value: u64) {
        self.single.write(a, value);
    }

    fn read_bulk(&self, a: Access, buf: &mut [u8]) {
        (self.read_bulk)(&mut self.single.cell.lock(), a, buf);
    }

    fn write_bulk(&self, a: Access, buf: &[u8]) {
        (self.write_bulk)(&mut self.single.cell.lock(), a, buf);
    }
}

/// A handler that locks the device and calls its register functions.
pub fn cell_io<T: Send + 'static>(
    cell: &DeviceCell<T>,
    read: fn(&mut T, Access) -> u64,
    write: fn(&mut T, Access, u64),
) -> Arc<dyn IoHandler> {
    Arc::new(CellIo { cell: cell.clone(), read, write })
}

/// As [`cell_io`], with the device's own functions for string input and output.
pub fn cell_io_bulk<T: Send + 'static>(
    cell: &DeviceCell<T>,
    read: fn(&mut T, Access) -> u64,
    write: fn(&mut T, Access, u64),
    read_bulk: fn(&mut T, Access, &mut [u8]),
    write_bulk: fn(&mut T, Access, &[u8]),
) -> Arc<dyn IoHandler> {
    Arc::new(CellIoBulk { single: CellIo { cell: cell.clone(), read, write }, read_bulk, write_bulk })
}
