//! Server-sent events over a connection.

use std::io::{self, BufRead, BufReader};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use crate::error::{Error, ErrorCode, Result};
use crate::http::{Body, Socket};

/// One server-sent event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// Its `event:` field, if it has one.
    pub name: Option<String>,
    /// Its `data:` lines.
    pub data: String,
}

/// The events of an answer as they come; each `next` blocks until there is one.
///
/// Ends at `[DONE]`, at the answer's end, or after an error. **Dropping it closes the connection, which cancels the
/// request**; [`Events::canceller`] does so from another thread.
#[derive(Debug)]
pub struct Events {
    lines: BufReader<Body>,
    cancelled: Arc<AtomicBool>,
    ended: bool,
}

/// Cancels a request whose events another thread waits for.
#[derive(Debug)]
pub struct Canceller {
    socket: Socket,
    cancelled: Arc<AtomicBool>,
}

impl Canceller {
    /// Closes the connection: the iterator's next item is an error with [`ErrorCode::Cancelled`], the last one. After
    /// the answer's end it does nothing.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        // It fails where the connection is closed already.
        let _ = self.socket.shutdown();
    }
}

impl Events {
    pub(crate) fn new(body: Body) -> Self {
        Events { lines: BufReader::new(body), cancelled: Arc::default(), ended: false }
    }

    /// Something that another thread can cancel the request with.
    pub fn canceller(&self) -> Result<Canceller> {
        Ok(Canceller { socket: self.lines.get_ref().socket().try_clone()?, cancelled: Arc::clone(&self.cancelled) })
    }

    fn read(&mut self) -> io::Result<Option<Event>> {
        let mut event = Event::default();
        let mut data: Option<String> = None;
        let mut line = String::new();
        loop {
            line.clear();
            if self.lines.read_line(&mut line)? == 0 {
                return Ok(None); // an event that no empty line ends was cut off
            }
            let text = line.trim_end_matches(['\r', '\n']);
            let (field, value) = text.split_once(':').unwrap_or((text, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "" if text.is_empty() => match data.take() {
                    Some(data) => return Ok(Some(Event { data, ..event })),
                    None => event = Event::default(),
                },
                "event" => event.name = Some(value.to_owned()),
                "data" => data = Some(data.map_or_else(|| value.to_owned(), |before| before + "\n" + value)),
                _ => {} // comments keep an idle connection alive
            }
        }
    }
}

impl Iterator for Events {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let read = self.read();
        if let Ok(Some(event)) = read {
            if event.data != "[DONE]" {
                return Some(Ok(event));
            }
            self.ended = true;
            return None;
        }
        self.ended = true;
        if self.cancelled.load(Ordering::SeqCst) {
            return Some(Err(Error::new(ErrorCode::Cancelled, "The request was cancelled.")));
        }
        read.err().map(|error| Err(error.into()))
    }
}
