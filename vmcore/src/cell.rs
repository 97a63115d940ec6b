//! The one lock of a device.
//!
//! Register handlers, timers and landings all run with it held, so a device is plain `&mut self` code.
//! Order: device cell, then the interrupt fabric, then a vCPU's mailbox (atomics). A device never calls
//! another device while its cell is held.

use std::sync::{Arc, Weak};

use parking_lot::{Mutex, MutexGuard};

/// Shared ownership of a device behind its one lock.
pub struct DeviceCell<T>(Arc<Mutex<T>>);

/// A reference that does not keep the device alive: what timers and handlers of the device itself hold.
pub struct WeakCell<T>(Weak<Mutex<T>>);

/// The device, locked.
pub type DeviceGuard<'a, T> = MutexGuard<'a, T>;

impl<T> DeviceCell<T> {
    /// Puts `device` behind its lock.
    pub fn new(device: T) -> Self {
        Self(Arc::new(Mutex::new(device)))
    }

    /// Makes a device that holds a weak reference to its own cell, as one with timers does.
    pub fn new_cyclic(make: impl FnOnce(&WeakCell<T>) -> T) -> Self {
        Self(Arc::new_cyclic(|weak| Mutex::new(make(&WeakCell(weak.clone())))))
    }

    /// Locks the device.
    #[inline]
    pub fn lock(&self) -> DeviceGuard<'_, T> {
        self.0.lock()
    }

    /// Locks the device unless somebody holds it.
    pub fn try_lock(&self) -> Option<DeviceGuard<'_, T>> {
        self.0.try_lock()
    }

    /// A reference that does not keep the device alive.
    pub fn downgrade(&self) -> WeakCell<T> {
        WeakCell(Arc::downgrade(&self.0))
    }

    /// Whether two handles are of the same device.
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<T> WeakCell<T> {
    /// The device, if it still exists.
    pub fn upgrade(&self) -> Option<DeviceCell<T>> {
        self.0.upgrade().map(DeviceCell)
    }
}

impl<T> Clone for DeviceCell<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Clone for WeakCell<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}
