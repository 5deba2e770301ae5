//! Debian's `miniupnpd` on a gateway of the laboratory: a router that forwards a port when it is asked, and that none of
//! us wrote.

use crate::lab::{Background, Lab};
use std::{io::Write, path::Path};

const PROGRAM: &str = "/usr/sbin/miniupnpd";

/// What the laboratory needs for it.
pub fn needs() -> (&'static str, bool) {
    ("miniupnpd (miniupnpd-nftables)", Path::new(PROGRAM).is_file())
}

/// A gateway that forwards ports, for as long as the value lives.
pub struct Igd {
    _process: Background,
    _config: tempfile::NamedTempFile,
}

/// Its chains, beside those that `netlab` makes; and a way in for who asks it.
const RULES: &str = "\
insert rule inet filter input iifname \"lan\" udp dport 1900 accept
insert rule inet filter input iifname \"lan\" tcp dport 5000 accept
add chain inet filter miniupnpd
table inet nat {
  chain prerouting_miniupnpd { }
  chain postrouting_miniupnpd { }
  chain prerouting { type nat hook prerouting priority dstnat; jump prerouting_miniupnpd; }
}
";

const CONFIG: &str = "\
ext_ifname=wan
listening_ip=lan
http_port=5000
enable_natpmp=no
enable_upnp=yes
secure_mode=yes
uuid=5b2a9c0e-7a3e-4c6c-9f7e-000000000001
upnp_table_name=filter
upnp_nat_table_name=nat
upnp_forward_chain=miniupnpd
upnp_nat_chain=prerouting_miniupnpd
upnp_nat_postrouting_chain=postrouting_miniupnpd
allow 1024-65535 192.168.0.0/16 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
";

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(text.as_bytes()).expect("a temporary file takes a text");
    file
}

impl Igd {
    /// Starts it on this gateway. The gateway's outer address must be a global one, or it forwards nothing.
    ///
    /// # Panics
    /// When it does not start.
    pub fn up(lab: &Lab, gateway: &str) -> Self {
        let run = |program: &str, words: &[&str]| {
            let output = lab.run(gateway, Path::new(program), words);
            assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        };
        let (rules, config) = (file(RULES), file(CONFIG));
        run("/usr/sbin/nft", &["-f", &rules.path().display().to_string()]);
        run("/usr/sbin/ip", &["route", "add", "239.0.0.0/8", "dev", "lan"]);
        let config_path = config.path().display().to_string();
        let mut command = lab.on(gateway, Path::new(PROGRAM), &["-d", "-f", &config_path]);
        let quiet = command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
        let process = quiet.stderr(std::process::Stdio::null()).spawn().expect("miniupnpd starts");
        Self { _process: Background(process), _config: config }
    }
}
