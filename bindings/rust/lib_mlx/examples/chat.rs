//! Talks to a model: `chat MODEL [PROMPT]`.
//!
//! Loads MODEL (a directory or a name in the store) and shows the progress on stderr, starts its HTTP server, streams a
//! chat completion and prints the text as it comes, cancels a second one in mid-answer, and unloads. Exit status 0, or
//! 1 after an error, whose code, message and hint go to stderr.

use std::io::{self, Write};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use lib_mlx::{ChatRequest, Client, LoadConfig, Model, ModelState, Result, ServerConfig};

const PROMPT: &str = "Why is the sky blue? Answer in two sentences.";
const LONG_PROMPT: &str = "loop: count from one to a thousand, in words.";

/// A status never blocks: a UI thread may ask for it.
fn wait_until_ready(model: &Model) -> Result<()> {
    let mut shown = -1.0;
    loop {
        let status = model.status()?.model;
        if let Some(error) = status.error {
            return Err(error);
        }
        if status.state != ModelState::Loading {
            return Ok(());
        }
        if status.progress != shown && !status.stage.is_empty() {
            eprintln!("loading: {:.0} % ({})", 100.0 * status.progress, status.stage);
        }
        shown = status.progress;
        sleep(Duration::from_millis(20));
    }
}

fn stream(client: &Client, prompt: &str) -> Result<()> {
    let sent = Instant::now();
    let mut first = None;
    let mut tokens = 0;
    for chunk in client.chat(&ChatRequest::new("chat").user(prompt).max_tokens(256).temperature(0.0))? {
        let chunk = chunk?;
        if !chunk.text.is_empty() {
            first.get_or_insert_with(|| sent.elapsed());
            print!("{}", chunk.text);
            let _ = io::stdout().flush();
        }
        tokens = chunk.usage.map_or(tokens, |usage| usage.completion_tokens);
    }
    println!("\n\n{tokens} tokens, first token after {:.2} s", first.unwrap_or_default().as_secs_f64());
    Ok(())
}

/// Dropping a stream closes its connection, and the server ends the request.
fn cancel(client: &Client) -> Result<()> {
    let mut chunks = client.chat(&ChatRequest::new("chat").user(LONG_PROMPT).max_tokens(3000))?;
    while let Some(chunk) = chunks.next().transpose()? {
        if !chunk.text.is_empty() {
            break;
        }
    }
    print!("a long answer: in flight {}, ", client.health()?.in_flight);
    drop(chunks);
    let dropped = Instant::now();
    while client.health()?.in_flight > 0 && dropped.elapsed() < Duration::from_secs(10) {
        sleep(Duration::from_millis(20));
    }
    println!("cancelled: in flight {}", client.health()?.in_flight);
    Ok(())
}

fn run(path: &str, prompt: &str) -> Result<()> {
    let model = Model::load(&LoadConfig::new(path).model_id("chat").wait(false))?;
    wait_until_ready(&model)?;
    let client = model.start_server(&ServerConfig::default())?.client();
    stream(&client, prompt)?;
    cancel(&client)?;
    model.stop_server()?;
    let memory = model.unload()?;
    println!("unloaded: {} MB, then {} MB", memory.before_bytes / 1_000_000, memory.after_bytes / 1_000_000);
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.as_slice() {
        [path] => run(path, PROMPT),
        [path, prompt] => run(path, prompt),
        _ => {
            eprintln!("usage: chat MODEL [PROMPT]");
            return ExitCode::FAILURE;
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
