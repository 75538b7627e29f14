//! A client that costs little: it looks at no more of the answer than it must.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const DONE: &[u8] = b"data: [DONE]";

/// The bytes of a request.
pub(super) fn post(path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

async fn send(address: SocketAddr, request: &[u8]) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    stream.write_all(request).await?;
    Ok(stream)
}

/// Reads a stream to its end; gives its bytes. An answer that is no whole stream is an error.
pub(super) async fn drain(address: SocketAddr, request: &[u8]) -> Result<usize> {
    let mut stream = send(address, request).await?;
    let mut buffer = vec![0; 64 << 10];
    let (mut total, mut tail) = (0, Vec::new());
    loop {
        let n = stream.read(&mut buffer).await?;
        let Some(new) = buffer.get(..n).filter(|new| !new.is_empty()) else { break };
        if total == 0 && !new.starts_with(b"HTTP/1.1 200") {
            bail!("the server refused: {}", String::from_utf8_lossy(new));
        }
        total += n;
        tail.extend_from_slice(new);
        let keep = tail.len().saturating_sub(64);
        tail.drain(..keep);
    }
    if !tail.windows(DONE.len()).any(|w| w == DONE) {
        bail!("a stream broke off: {}", String::from_utf8_lossy(&tail));
    }
    Ok(total)
}

/// The time from the connection to the event with the first token: the first event only says who speaks.
pub(super) async fn first_token(address: SocketAddr, request: &[u8]) -> Result<Duration> {
    let started = Instant::now();
    let mut stream = send(address, request).await?;
    let mut read = Vec::new();
    loop {
        if stream.read_buf(&mut read).await? == 0 {
            bail!("a stream broke off: {}", String::from_utf8_lossy(&read));
        }
        if read.windows(6).filter(|w| w == b"data: ").count() >= 2 {
            return Ok(started.elapsed());
        }
    }
}
