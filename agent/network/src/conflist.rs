//! The CNI configuration list.

use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

use crate::plan::Plan;
use crate::{BRIDGE, Config, Error};

/// Sorted before other vendors' usual names, so that it wins where several are present.
const FILE: &str = "10-skiff.conflist";
/// The network's name: host-local's directory, and part of every owner mark.
pub const NETWORK: &str = "skiff";

/// Version 1.0.0 because runtimes with a libcni before 1.2 refuse newer ones; GC and STATUS, which
/// came with 1.1, are the agent's own calls.
pub fn render(config: &Config, plan: &Plan) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": NETWORK,
        "plugins": [
            {
                "type": "bridge",
                "bridge": BRIDGE,
                "isGateway": true,
                "forceAddress": true,
                "hairpinMode": true,
                "routed": true,
                "mtu": plan.mtu,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{ "subnet": plan.pods.network().to_string() }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                    "dataDir": config.cni_data_dir,
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true }, "snat": true },
            { "type": "bandwidth", "capabilities": { "bandwidth": true } },
        ],
    })
}

/// Writes only what differs, and renames into place: a runtime reads a whole file or none.
pub fn write(directory: &Path, content: &Value) -> Result<(), Error> {
    let path = directory.join(FILE);
    let text = format!("{content:#}\n");
    if std::fs::read_to_string(&path).is_ok_and(|now| now == text) {
        return Ok(());
    }
    let failed = |source| Error::Conflist { path: path.clone(), source };
    std::fs::create_dir_all(directory).map_err(failed)?;
    // The runtime reads names that end in .conf, .conflist and .json.
    let temporary = directory.join(format!(".{FILE}.tmp"));
    let mut file = std::fs::File::create(&temporary).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    std::fs::rename(&temporary, &path).map_err(failed)
}

/// Removes what [`write`] wrote.
pub fn remove(directory: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(directory.join(FILE)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_appears_whole_and_goes() {
        let directory = tempfile::tempdir().unwrap();
        let conf = directory.path().join("net.d");
        write(&conf, &json!({"name": "skiff"})).unwrap();
        write(&conf, &json!({"name": "skiff"})).unwrap();
        let names: Vec<_> = std::fs::read_dir(&conf).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, [FILE]);
        remove(&conf).unwrap();
        remove(&conf).unwrap();
    }
}
