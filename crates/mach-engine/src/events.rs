//! The way of events from the engine to whoever reads them, and the account of those that nobody has read.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use crate::{EngineError, Event, TokenLogprob};

/// What a reader that keeps up may hold, however full the account is.
const ALWAYS: usize = 64 << 10;

/// Bytes of answers that wait to be read, all together, and what they may be. The engine never waits for a reader: one who
/// does not read is cut off.
#[derive(Debug)]
pub struct Unread {
    /// Most bytes of one stream.
    stream: usize,
    /// Most bytes of all.
    all: usize,
    held: AtomicUsize,
}

impl Default for Unread {
    fn default() -> Self {
        Self::new(64 << 20)
    }
}

impl Unread {
    /// An account of `all` bytes, of which one stream may hold a sixteenth. Whatever is held, each answer may hold 64 KiB.
    pub fn new(all: usize) -> Self {
        Self { stream: (all / 16).max(ALWAYS), all, held: AtomicUsize::new(0) }
    }

    /// Bytes that are held now.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Bytes that may be held.
    pub fn all(&self) -> usize {
        self.all
    }

    /// Charges a whole answer of `bytes` until the charge is dropped; `None` if the account does not hold it.
    pub fn charge(self: &Arc<Self>, bytes: usize) -> Option<Charge> {
        let charge = Charge { account: Arc::clone(self), bytes };
        let held = self.held.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (bytes <= ALWAYS || held <= self.all).then_some(charge)
    }
}

/// An answer that waits to be read.
#[derive(Debug)]
pub struct Charge {
    account: Arc<Unread>,
    bytes: usize,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.account.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What the two ends of a channel share.
#[derive(Debug)]
struct Backlog {
    account: Arc<Unread>,
    bytes: AtomicUsize,
    /// It grew too large: nothing more is sent.
    cut: AtomicBool,
}

impl Backlog {
    /// Adds an event; whether it may be sent.
    fn add(&self, bytes: usize) -> bool {
        let own = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let all = self.account.held.fetch_add(bytes, Ordering::Relaxed) + bytes;
        own <= self.account.stream && (own <= ALWAYS || all <= self.account.all)
    }

    fn take(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.account.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Bytes that an event takes while it waits.
fn bytes_of(event: &Event) -> usize {
    let logprob = |l: &TokenLogprob| size_of::<TokenLogprob>() + size_of_val(l.top.as_slice());
    size_of::<Event>()
        + match event {
            Event::Text { text, logprobs, .. } => text.len() + logprobs.iter().map(logprob).sum::<usize>(),
            Event::Finished { ids, .. } => ids.as_ref().map_or(0, |ids| size_of_val(ids.as_slice())),
            Event::Embedding(values) => size_of_val(values.as_slice()),
            Event::Failed(_) => 0,
        }
}

/// A channel for the events of one request, charged to the account.
pub fn channel(account: &Arc<Unread>) -> (EventSender, Events) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let account = Arc::clone(account);
    let backlog = Arc::new(Backlog { account, bytes: AtomicUsize::new(0), cut: AtomicBool::new(false) });
    (EventSender { sender, backlog: Arc::clone(&backlog) }, Events { receiver, backlog })
}

/// The engine's end; one for each choice.
#[derive(Debug, Clone)]
pub struct EventSender {
    sender: UnboundedSender<Event>,
    backlog: Arc<Backlog>,
}

impl EventSender {
    /// Sends an event, unless nobody waits for it. An event too many is not sent: the reader is told that it was too slow, and
    /// the request is over.
    pub fn send(&self, event: Event) {
        if self.is_closed() {
            return;
        }
        let bytes = bytes_of(&event);
        let (event, bytes) = if self.backlog.add(bytes) {
            (event, bytes)
        } else {
            self.backlog.cut.store(true, Ordering::Release);
            self.backlog.take(bytes);
            let last = Event::Failed(EngineError::Unread);
            let bytes = bytes_of(&last);
            self.backlog.add(bytes);
            (last, bytes)
        };
        if self.sender.send(event).is_err() {
            self.backlog.take(bytes);
        }
    }

    /// Whether nobody waits for more events: the reader has gone, or was cut off.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed() || self.backlog.cut.load(Ordering::Acquire)
    }
}

/// The events of one request. Dropping it cancels the request before the next step.
#[derive(Debug)]
pub struct Events {
    receiver: UnboundedReceiver<Event>,
    backlog: Arc<Backlog>,
}

impl Events {
    /// Waits for the next event; `None` if nothing comes any more.
    pub async fn recv(&mut self) -> Option<Event> {
        let event = self.receiver.recv().await;
        self.read(event)
    }

    /// The same, for threads.
    pub fn blocking_recv(&mut self) -> Option<Event> {
        let event = self.receiver.blocking_recv();
        self.read(event)
    }

    /// What is there now.
    pub fn try_recv(&mut self) -> Result<Event, TryRecvError> {
        self.receiver.try_recv().inspect(|event| self.backlog.take(bytes_of(event)))
    }

    /// As [`recv`](Self::recv), for streams.
    pub fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.receiver.poll_recv(context).map(|event| self.read(event))
    }

    fn read(&self, event: Option<Event>) -> Option<Event> {
        event.inspect(|event| self.backlog.take(bytes_of(event)))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.receiver.close();
        while self.try_recv().is_ok() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: usize) -> Event {
        Event::Text { choice: 0, text: "x".repeat(bytes), logprobs: Vec::new() }
    }

    #[test]
    fn the_account_goes_back_to_nothing() {
        let account = Arc::new(Unread::new(1 << 20));
        let (sender, mut events) = channel(&account);
        sender.send(text(1000));
        sender.clone().send(text(10));
        assert!((1010..2000).contains(&account.held()), "{}", account.held());
        assert_eq!(events.blocking_recv(), Some(text(1000)));
        assert!(account.held() < 1000);
        drop(events);
        assert!(sender.is_closed());
        sender.send(text(5));
        assert_eq!(account.held(), 0);
        let charge = account.charge(500).unwrap();
        assert_eq!(account.held(), 500);
        drop(charge);
        assert_eq!(account.held(), 0);
    }

    #[test]
    fn who_does_not_read_is_cut_off() {
        let account = Arc::new(Unread::new(4 << 20));
        let (sender, mut events) = channel(&account);
        let mut sent = 0;
        while !sender.is_closed() {
            sender.send(text(10_000));
            sent += 1;
            assert!(sent < 100, "it never ends");
        }
        assert!(account.held() <= 256 << 10, "{}", account.held());
        // What was sent before is read, then the reason.
        for _ in 1..sent {
            assert_eq!(events.blocking_recv(), Some(text(10_000)));
        }
        assert_eq!(events.blocking_recv(), Some(Event::Failed(EngineError::Unread)));
        drop(sender);
        assert_eq!((events.blocking_recv(), account.held()), (None, 0));
    }

    #[test]
    fn a_full_account_leaves_those_alone_who_read() {
        let account = Arc::new(Unread::new(1 << 20));
        let full = account.charge(1 << 20).unwrap();
        assert!(account.charge(ALWAYS + 1).is_none());
        assert!(account.charge(ALWAYS).is_some());
        let (sender, mut events) = channel(&account);
        for _ in 0..20 {
            sender.send(text(ALWAYS / 2));
            assert_eq!(events.blocking_recv(), Some(text(ALWAYS / 2)));
        }
        sender.send(text(ALWAYS / 2));
        sender.send(text(ALWAYS / 2));
        assert!(sender.is_closed());
        drop((full, events));
        assert_eq!(account.held(), 0);
    }
}
