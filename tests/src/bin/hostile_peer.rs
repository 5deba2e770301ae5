//! Attacks a node, for its own good: joins its federation with a code, then does what members and strangers must not.

use anyhow::{Context as _, ensure};
use clap::Parser;
use kos_tests::hostile::{
    ATTACKS, Stage,
    speaker::{Actor, Target},
};
use std::time::{Duration, Instant};

/// How long joining may take.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Parser)]
struct Args {
    /// Which of the attacks; prints their names without one.
    attack: Option<String>,
    /// An invitation of the node's owner, good for several uses, with loopback addresses in it.
    #[arg(long, env = "HOSTILE_CODE", default_value = "")]
    code: String,
    /// For how long.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let Some(name) = args.attack else {
        ATTACKS.iter().for_each(|attack| println!("{}", attack.name));
        return Ok(());
    };
    let (seed, attack) = (0u32..)
        .zip(ATTACKS)
        .find(|(_, attack)| attack.name == name)
        .with_context(|| format!("no attack is called {name}"))?;
    let target = Target::read(&args.code, seed)?;
    ensure!(target.tcp.ip().is_loopback(), "only nodes on this machine are attacked");
    // Whoever attacks from elsewhere has a processor of its own.
    let _ = rustix::process::nice(10);
    let actor = Actor::named(&name);
    let begun = Instant::now();
    while let Err(error) = actor.join(&target, &name).await {
        // The strangers of the attack before may still be there.
        ensure!(begun.elapsed() < PATIENCE, "joining: {error:#}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    println!("begun");
    let stage = Stage::new(target, actor, Instant::now() + Duration::from_secs(args.seconds));
    tokio::select! {
        outcome = (attack.run)(&stage) => outcome?,
        // A target that lets a step of the attack hang does not keep it from ending.
        () = stage.to_the_end() => {}
    }
    println!("{} rounds", stage.rounds());
    Ok(())
}
