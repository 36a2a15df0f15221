//! Just enough HTTP/1.1 for a server on this machine: one request per connection.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// `host:port`.
    Tcp(String),
    Unix(PathBuf),
}

#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    fn connect(endpoint: &Endpoint) -> io::Result<Self> {
        match endpoint {
            Endpoint::Tcp(authority) => {
                let stream = TcpStream::connect(authority)?;
                stream.set_nodelay(true)?;
                Ok(Socket::Tcp(stream))
            }
            Endpoint::Unix(path) => UnixStream::connect(path).map(Socket::Unix),
        }
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        match self {
            Socket::Tcp(stream) => stream.try_clone().map(Socket::Tcp),
            Socket::Unix(stream) => stream.try_clone().map(Socket::Unix),
        }
    }

    /// Ends reads that wait in other threads.
    pub(crate) fn shutdown(&self) -> io::Result<()> {
        match self {
            Socket::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Socket::Unix(stream) => stream.shutdown(Shutdown::Both),
        }
    }
}

impl Read for Socket {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => stream.read(out),
            Socket::Unix(stream) => stream.read(out),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => stream.write(data),
            Socket::Unix(stream) => stream.write(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How the end of a body is known.
#[derive(Debug)]
enum Framing {
    /// What is left of the current chunk; `None` after the last one.
    Chunks(Option<u64>),
    Length(u64),
    Connection,
}

/// The body of an answer. A connection that ends before it does is an error.
#[derive(Debug)]
pub(crate) struct Body {
    source: BufReader<Socket>,
    framing: Framing,
}

impl Body {
    pub(crate) fn socket(&self) -> &Socket {
        self.source.get_ref()
    }

    fn next_chunk(&mut self) -> io::Result<Option<u64>> {
        let mut line = read_line(&mut self.source)?;
        if line.is_empty() {
            line = read_line(&mut self.source)?; // the line end that closes the chunk before
        }
        let size = line.split(';').next().unwrap_or_default().trim();
        match u64::from_str_radix(size, 16).map_err(|_| malformed("the size of a chunk"))? {
            0 => Ok(None),
            size => Ok(Some(size)),
        }
    }
}

impl Read for Body {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if let Framing::Chunks(Some(0)) = self.framing {
            self.framing = Framing::Chunks(self.next_chunk()?);
        }
        let left = match &mut self.framing {
            Framing::Connection => return self.source.read(out),
            Framing::Chunks(None) | Framing::Length(0) => return Ok(0),
            Framing::Chunks(Some(left)) | Framing::Length(left) => left,
        };
        let most = out.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
        let count = self.source.read(&mut out[..most])?;
        if count == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        *left -= count as u64;
        Ok(count)
    }
}

/// Sends a request and reads the head of the answer: its status and its body.
pub(crate) fn send(
    endpoint: &Endpoint,
    method: &str,
    path: &str,
    key: Option<&str>,
    body: &str,
) -> io::Result<(u16, Body)> {
    let mut socket = Socket::connect(endpoint)?;
    let host = match endpoint {
        Endpoint::Tcp(authority) => authority,
        Endpoint::Unix(_) => "localhost",
    };
    let authorization = key.map(|key| format!("Authorization: Bearer {key}\r\n")).unwrap_or_default();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nConnection: close\r\n\
         {authorization}Content-Length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all((head + body).as_bytes())?;
    read_head(BufReader::new(socket))
}

fn read_head(mut source: BufReader<Socket>) -> io::Result<(u16, Body)> {
    let first = read_line(&mut source)?;
    let status =
        first.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(|| malformed("the answer"))?;
    let mut framing = Framing::Connection;
    loop {
        let line = read_line(&mut source)?;
        if line.is_empty() {
            return Ok((status, Body { source, framing }));
        }
        let (name, value) = line.split_once(':').ok_or_else(|| malformed("a header"))?;
        match (name.to_ascii_lowercase().as_str(), value.trim()) {
            ("transfer-encoding", "chunked") => framing = Framing::Chunks(Some(0)),
            ("content-length", length) => {
                framing = Framing::Length(length.parse().map_err(|_| malformed("the length"))?);
            }
            _ => {}
        }
    }
}

/// A line without its end; an error at the end of the connection.
fn read_line(source: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    if source.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    line.truncate(line.trim_end_matches(['\r', '\n']).len());
    Ok(line)
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} is malformed"))
}
