//! What one render may make: minijinja counts what its own operators and filters make against the fuel of the render; what those of
//! this crate make is counted here, before it is made. Both only ever grow, so that together they bound the memory of a render.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use minijinja::{Error, ErrorKind};

/// Bytes that a unit of fuel stands for, in minijinja and here together.
pub(super) const BYTES_OF_FUEL: u64 = 128;
/// Bytes that a unit of fuel gives here.
const BYTES_HERE: u64 = 64;

thread_local! {
    /// Bytes left; without a render on this thread, there is no end to them.
    static LEFT: Cell<u64> = const { Cell::new(u64::MAX) };
    static SPENT: Cell<bool> = const { Cell::new(false) };
    /// Whether renders have the usual fuel alone, and whether that was too little for one.
    static MODEST: Cell<bool> = const { Cell::new(false) };
    static SHORT: Cell<bool> = const { Cell::new(false) };
    /// Set when nobody waits for what this thread renders.
    static GONE: RefCell<Option<Arc<AtomicBool>>> = const { RefCell::new(None) };
}

/// Renders with so much fuel's worth of memory; `true` beside the result if that was not enough.
pub(super) fn within<T>(fuel: u64, render: impl FnOnce() -> T) -> (T, bool) {
    let before = (LEFT.replace(fuel.saturating_mul(BYTES_HERE)), SPENT.replace(false));
    let out = render();
    LEFT.set(before.0);
    (out, SPENT.replace(before.1))
}

/// Renders until `gone` is set: what renders then, fails.
pub fn until<T>(gone: &Arc<AtomicBool>, render: impl FnOnce() -> T) -> T {
    let before = GONE.replace(Some(Arc::clone(gone)));
    let out = render();
    GONE.replace(before);
    out
}

/// Renders with what nearly all prompts need ([`usual_memory`](super::ChatTemplate::usual_memory)); `None` if that is too little. So
/// the memory of a template's worst is asked for where it is needed alone.
pub fn modestly<T>(render: impl FnOnce() -> T) -> Option<T> {
    let before = (MODEST.replace(true), SHORT.replace(false));
    let out = render();
    MODEST.set(before.0);
    (!SHORT.replace(before.1)).then_some(out)
}

/// Whether renders have the usual fuel alone.
pub(super) fn is_modest() -> bool {
    MODEST.get()
}

/// The fuel of a render was too little.
pub(super) fn fell_short() {
    SHORT.set(true);
}

/// Takes bytes that are about to be made.
pub(super) fn take(bytes: usize) -> Result<(), Error> {
    let left = LEFT.get().checked_sub(bytes as u64);
    LEFT.set(left.unwrap_or(0));
    if left.is_none() || SPENT.get() {
        SPENT.set(true);
        return Err(Error::new(ErrorKind::OutOfFuel, "the template makes too much text"));
    }
    if GONE.with_borrow(|gone| gone.as_ref().is_some_and(|gone| gone.load(Ordering::Relaxed))) {
        return Err(Error::new(ErrorKind::InvalidOperation, "nobody waits for the prompt"));
    }
    Ok(())
}

/// Takes bytes where nothing can fail: after `false` nothing more is to be made, and the render fails at its end.
pub(super) fn may_take(bytes: usize) -> bool {
    take(bytes).is_ok()
}

/// Items of a list, each of which is charged. Lists may be repeated without being made, so there is no telling how many come.
pub(super) fn collect<T>(items: impl Iterator<Item = T>) -> Result<Vec<T>, Error> {
    let mut out = Vec::new();
    for item in items {
        // The vector doubles.
        take(3 * size_of::<T>())?;
        out.push(item);
    }
    Ok(out)
}
