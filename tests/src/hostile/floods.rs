//! Connections: many, from one place and from many, and such as never finish their handshake.

use super::{
    Stage, refused,
    speaker::Actor,
    wire::{connect, own_address, secured},
};
use futures::{StreamExt, stream};
use tokio::{io::AsyncWriteExt, net::UdpSocket};

/// Connections made at once.
const AT_ONCE: usize = 8;
/// Connections in a wave.
const WAVE: usize = 1_000;

/// A thousand connections of a thousand strangers from a thousand addresses, then as many from one address.
///
/// # Errors
/// When the attack cannot even begin.
pub async fn connections(stage: &Stage) -> anyhow::Result<()> {
    let one = own_address(1);
    let mut held = Vec::new();
    'all: loop {
        for n in 0..WAVE / AT_ONCE {
            let wave = (0..AT_ONCE).map(|_| async move {
                let from = if n % 4 == 3 { one } else { stage.target.from() };
                refused(secured(&Actor::fresh().secret, stage.target.tcp, from).await)
            });
            held.extend(
                stream::iter(wave)
                    .buffer_unordered(AT_ONCE)
                    .filter_map(async |made| made)
                    .collect::<Vec<_>>()
                    .await,
            );
            if !stage.goes_on().await {
                break 'all;
            }
        }
        held.clear();
    }
    Ok(())
}

/// TCP connections that stop before, in and after the first line, and QUIC handshakes of nothing.
///
/// # Errors
/// When the attack cannot even begin.
pub async fn half_open(stage: &Stage) -> anyhow::Result<()> {
    let socket = UdpSocket::bind((stage.target.from(), 0)).await?;
    socket.connect(stage.target.quic).await?;
    let mut held = std::collections::VecDeque::new();
    let mut n = 0u32;
    while stage.goes_on().await {
        n += 1;
        let from = if n.is_multiple_of(2) { own_address(2) } else { stage.target.from() };
        if let Some(mut silent) = refused(connect(stage.target.tcp, from).await) {
            let beginning: &[u8] =
                [&b""[..], b"\x13/multistream", b"\x13/multistream/1.0.0\n\x07/noise\n\x00"][n as usize % 3];
            refused(silent.write_all(beginning).await.map_err(Into::into));
            held.push_back(silent);
        }
        if held.len() > 500 {
            held.pop_front();
        }
        let _ = socket.send(&initial(n)).await;
    }
    Ok(())
}

/// A QUIC Initial of version 1 in form, with noise for its payload.
fn initial(n: u32) -> Vec<u8> {
    let mut packet = vec![0xc3, 0, 0, 0, 1, 8];
    packet.extend(u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    packet.extend([8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0x44, 0x90]);
    packet.resize(1_200, n as u8);
    packet
}
