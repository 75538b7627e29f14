//! A client's socket: one that does not read is given up after a time, and what hyper refuses by itself gets a body.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::refusal;

/// How long, and for how many bytes, a client may go on sending what nobody reads any more. A socket that is closed before that
/// resets the connection, which can take the answer with it.
const LINGER: (Duration, usize) = (Duration::from_secs(1), 4 << 20);

/// The socket as hyper uses it.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: Arc<TcpStream>,
    /// How long a write may make no progress.
    patience: Option<Duration>,
    /// Runs while a write waits.
    waiting: Option<Pin<Box<Sleep>>>,
    state: Arc<State>,
    /// A refusal that is written in the place of hyper's.
    instead: Option<Instead>,
}

/// What is known of a connection beside its bytes.
#[derive(Debug, Default)]
struct State {
    /// Something was read since something was written: the beginning of a request, if none is at work.
    begun: AtomicBool,
    /// The client did not read its answer.
    given_up: AtomicBool,
}

#[derive(Debug)]
struct Instead {
    bytes: Vec<u8>,
    written: usize,
    /// Bytes of hyper's that it stands for.
    stands_for: usize,
}

/// The socket as whoever accepted it keeps it, for the end.
#[derive(Debug)]
pub(crate) struct Rest {
    stream: Arc<TcpStream>,
    state: Arc<State>,
}

impl Socket {
    pub(crate) fn new(stream: TcpStream, patience: Option<Duration>) -> (Self, Rest) {
        let (stream, state) = (Arc::new(stream), Arc::<State>::default());
        let rest = Rest { stream: Arc::clone(&stream), state: Arc::clone(&state) };
        (Self { stream, patience, waiting: None, state, instead: None }, rest)
    }

    /// Writes what hyper asks for, or a refusal in its place.
    fn write(&mut self, context: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let first = slices.iter().find(|slice| !slice.is_empty()).map_or(&[][..], |slice| &**slice);
        if self.instead.is_none()
            && let Some(bytes) = refusal::with_body(first)
        {
            self.instead = Some(Instead { bytes, written: 0, stands_for: first.len() });
        }
        while let Some(instead) = &mut self.instead {
            let Some(rest) = instead.bytes.get(instead.written..).filter(|rest| !rest.is_empty()) else {
                let stands_for = instead.stands_for;
                self.instead = None;
                return Poll::Ready(Ok(stands_for));
            };
            match self.stream.try_write(rest) {
                Ok(written) => instead.written += written,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.stream.poll_write_ready(context))?;
                }
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
        loop {
            match self.stream.try_write_vectored(slices) {
                Ok(written) => return Poll::Ready(Ok(written)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.stream.poll_write_ready(context))?;
                }
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    /// Passes a write's outcome on, or the end of the patience.
    fn in_time(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.waiting = None;
            self.state.begun.store(false, Ordering::Relaxed);
            return written;
        }
        let Some(patience) = self.patience else { return Poll::Pending };
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + patience)));
        ready!(waiting.as_mut().poll(context));
        self.state.given_up.store(true, Ordering::Relaxed);
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read its answer")))
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(context))?;
            match self.stream.try_read_buf(buffer) {
                Ok(0) => return Poll::Ready(Ok(())),
                Ok(_) => {
                    self.state.begun.store(true, Ordering::Relaxed);
                    return Poll::Ready(Ok(()));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = this.write(context, slices);
        this.in_time(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The kernel has it.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(half_close(&self.stream))
    }
}

/// Tells the client that nothing more comes; one that has gone need not be told.
fn half_close(stream: &TcpStream) -> io::Result<()> {
    match socket2::SockRef::from(stream).shutdown(std::net::Shutdown::Write) {
        Err(e) if e.kind() == io::ErrorKind::NotConnected => Ok(()),
        done => done,
    }
}

impl Rest {
    /// Whether the connection ended in the middle of a request's head.
    pub(crate) fn begun(&self) -> bool {
        self.state.begun.load(Ordering::Relaxed)
    }

    /// Whether the client was given up because it did not read.
    pub(crate) fn given_up(&self) -> bool {
        self.state.given_up.load(Ordering::Relaxed)
    }

    /// Ends the connection at once; what the client did not read is lost.
    pub(crate) fn reset(self) {
        // Else the kernel would keep it for minutes. Where this fails, that is what happens.
        let _ = socket2::SockRef::from(&*self.stream).set_linger(Some(Duration::ZERO));
    }

    /// Writes a last answer, as much of it as the socket takes.
    pub(crate) fn say(&self, answer: &[u8]) {
        // A client that has gone, or never read, misses it.
        let _ = self.stream.try_write(answer);
    }

    /// Ends the connection so that what was written arrives: reads for a while what the client still sends.
    pub(crate) async fn end(self) {
        let Some(stream) = Arc::into_inner(self.stream) else { return };
        if half_close(&stream).is_err() {
            return;
        }
        let (time, bytes) = LINGER;
        let drained = async {
            let (mut left, mut scratch) = (bytes, [0; 4096]);
            while left > 0 && stream.readable().await.is_ok() {
                match stream.try_read(&mut scratch) {
                    Ok(read @ 1..) => left = left.saturating_sub(read),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Ok(0) | Err(_) => break,
                }
            }
        };
        // Whoever still sends after that has been told.
        let _ = tokio::time::timeout(time, drained).await;
    }
}
