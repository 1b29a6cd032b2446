//! The hosts file of a pod's containers (`kubelet_pods.go: managedHostsFileContent`). Pure.

use k8s_openapi::api::core::v1::{HostAlias, Pod};

/// What `hostname` prints inside, and the fully qualified name if the pod has a subdomain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodNames {
    pub hostname: String,
    pub domain: Option<String>,
}

/// A Linux hostname has at most this many bytes.
const HOSTNAME_MAX: usize = 63;

/// `spec.hostnameOverride` alone, or `spec.hostname`, or the pod's name cut to what a hostname may be.
pub fn names(pod: &Pod, cluster_domain: &str) -> PodNames {
    let spec = pod.spec.as_ref();
    if let Some(hostname) = spec.and_then(|spec| spec.hostname_override.clone()) {
        return PodNames { hostname, domain: None };
    }
    let given = spec.and_then(|spec| spec.hostname.clone()).filter(|name| !name.is_empty());
    let hostname = given.unwrap_or_else(|| {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let cut = &name[..name.len().min(HOSTNAME_MAX)];
        cut.trim_end_matches(['-', '.']).to_owned()
    });
    let subdomain = spec.and_then(|spec| spec.subdomain.as_deref()).filter(|name| !name.is_empty());
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let domain = subdomain.map(|subdomain| format!("{subdomain}.{namespace}.svc.{cluster_domain}"));
    PodNames { hostname, domain }
}

/// The sandbox's host name: the fully qualified one if the pod asks for it and it fits.
pub fn sandbox_hostname(pod: &Pod, names: &PodNames) -> Result<String, String> {
    let wants_full = pod.spec.as_ref().and_then(|spec| spec.set_hostname_as_fqdn).unwrap_or(false);
    match &names.domain {
        Some(domain) if wants_full => {
            let full = format!("{}.{domain}", names.hostname);
            if full.len() > 64 {
                return Err(format!(
                    "failed to construct FQDN from Pod hostname and cluster domain, FQDN {full} is too long (64 characters is the max, {} characters requested)",
                    full.len()
                ));
            }
            Ok(full)
        }
        _ => Ok(names.hostname.clone()),
    }
}

/// The file for a pod with a network of its own.
pub fn managed(pod_ips: &[String], names: &PodNames, aliases: &[HostAlias]) -> String {
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n\
         127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n",
    );
    for ip in pod_ips {
        match &names.domain {
            Some(domain) => text.push_str(&format!("{ip}\t{0}.{domain}\t{0}\n", names.hostname)),
            None => text.push_str(&format!("{ip}\t{}\n", names.hostname)),
        }
    }
    text.push_str(&alias_lines(aliases));
    text
}

/// The file for a pod in the host's network: the host's, and the pod's aliases.
pub fn host_network(host_file: &str, aliases: &[HostAlias]) -> String {
    format!("# Kubernetes-managed hosts file (host network).\n{host_file}{}", alias_lines(aliases))
}

fn alias_lines(aliases: &[HostAlias]) -> String {
    if aliases.is_empty() {
        return String::new();
    }
    let mut text = String::from("\n# Entries added by HostAliases.\n");
    for alias in aliases {
        let names = alias.hostnames.as_deref().unwrap_or_default();
        text.push_str(&format!("{}\t{}\n", alias.ip, names.join("\t")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        let mut spec = spec;
        spec["containers"] = json!([]);
        serde_json::from_value(json!({"metadata": {"name": "web-0", "namespace": "n"}, "spec": spec})).unwrap()
    }

    #[test]
    fn names_and_files() {
        let plain = names(&pod(json!({})), "cluster.local");
        assert_eq!(plain, PodNames { hostname: "web-0".into(), domain: None });
        let full = pod(json!({"hostname": "a", "subdomain": "db", "setHostnameAsFQDN": true}));
        let full_names = names(&full, "cluster.local");
        assert_eq!(sandbox_hostname(&full, &full_names).unwrap(), "a.db.n.svc.cluster.local");
        let aliases = vec![HostAlias { ip: "1.2.3.4".into(), hostnames: Some(vec!["x".into(), "y".into()]) }];
        let file = managed(&["10.0.0.5".to_owned()], &full_names, &aliases);
        assert!(
            file.ends_with("10.0.0.5\ta.db.n.svc.cluster.local\ta\n\n# Entries added by HostAliases.\n1.2.3.4\tx\ty\n"),
            "{file}"
        );
        assert!(host_network("1.1.1.1\tone\n", &[]).ends_with("(host network).\n1.1.1.1\tone\n"));
    }

    #[test]
    fn long_names_are_cut_where_a_hostname_may_end() {
        let mut pod = pod(json!({}));
        pod.metadata.name = Some(format!("{}-{}", "a".repeat(62), "b".repeat(20)));
        assert_eq!(names(&pod, "c").hostname, "a".repeat(62));
    }

    #[test]
    fn an_override_is_the_only_name() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"metadata": {"name": "p", "namespace": "n"},
            "spec": {"containers": [], "hostname": "h", "subdomain": "s", "hostnameOverride": "my.host.name"}}))
        .unwrap();
        let names = names(&pod, "cluster.local");
        assert_eq!(sandbox_hostname(&pod, &names).unwrap(), "my.host.name");
        assert!(managed(&["10.0.0.1".to_owned()], &names, &[]).contains("10.0.0.1\tmy.host.name\n"));
    }
}
