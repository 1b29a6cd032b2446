//! Images made of what the machine has installed, for hosts that reach no registry.

use std::path::{Path, PathBuf};

use super::{Image, ImageConfig, ImageError, Rootfs};

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n";
const GROUP: &str = "root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n";

const NGINX_CONF: &str = "\
user www-data;
worker_processes 1;
pid /run/nginx.pid;
error_log /dev/stderr notice;
events { worker_connections 512; }
http {
    include /etc/nginx/mime.types;
    default_type application/octet-stream;
    access_log /dev/stdout;
    sendfile on;
    keepalive_timeout 65;
    include /etc/nginx/conf.d/*.conf;
}
";

const NGINX_SITE: &str = "\
server {
    listen 80;
    listen [::]:80;
    server_name localhost;
    root /usr/share/nginx/html;
    index index.html;
}
";

const NGINX_PAGE: &str = "\
<!DOCTYPE html>
<html>
<head><title>Welcome to nginx!</title></head>
<body>
<h1>Welcome to nginx!</h1>
<p>This nginx is the one that this machine's distribution packages, in an image built by skiff.</p>
</body>
</html>
";

/// `docker.io/library/nginx:latest` from the distribution's nginx (Debian: `nginx-light`), laid
/// out as the official image is: configuration under /etc/nginx/conf.d, pages under
/// /usr/share/nginx/html, logs on the standard streams.
pub fn nginx() -> Result<Image, ImageError> {
    let mut rootfs = base()
        .executable(Path::new("/usr/sbin/nginx"), "/usr/sbin/nginx")?
        .file("/etc/nginx/nginx.conf", 0o644, NGINX_CONF)
        .file("/etc/nginx/conf.d/default.conf", 0o644, NGINX_SITE)
        .file("/usr/share/nginx/html/index.html", 0o644, NGINX_PAGE)
        .directory("/var/log/nginx", 0o755)
        .directory("/var/lib/nginx", 0o755)
        .directory("/var/cache/nginx", 0o755);
    rootfs = rootfs.host_file(Path::new("/etc/nginx/mime.types"), "/etc/nginx/mime.types")?;
    if let Some(busybox) = find_busybox() {
        rootfs = with_busybox(rootfs, &busybox)?;
    }
    let config = ImageConfig {
        env: vec![PATH.to_owned()],
        entrypoint: vec!["/usr/sbin/nginx".to_owned()],
        cmd: vec!["-g".to_owned(), "daemon off;".to_owned()],
        stop_signal: "SIGQUIT".to_owned(),
        exposed_ports: [("80/tcp".to_owned(), serde_json::json!({}))].into(),
        ..Default::default()
    };
    Image::build("docker.io/library/nginx:latest", &rootfs, &config)
}

/// `docker.io/library/busybox:latest` from the distribution's busybox (Debian: `busybox-static`).
pub fn busybox() -> Result<Image, ImageError> {
    let busybox = find_busybox().unwrap_or_else(|| PathBuf::from("/bin/busybox"));
    let rootfs = with_busybox(base(), &busybox)?;
    let config = ImageConfig { env: vec![PATH.to_owned()], cmd: vec!["sh".to_owned()], ..Default::default() };
    Image::build("docker.io/library/busybox:latest", &rootfs, &config)
}

/// An image of one executable of this machine with its libraries, and busybox's tools beside it
/// where the machine has them.
pub fn executable(name: &str, host: &Path) -> Result<Image, ImageError> {
    let file = host.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let path = format!("/usr/bin/{file}");
    let mut rootfs = base().executable(host, &path)?;
    if let Some(busybox) = find_busybox() {
        rootfs = with_busybox(rootfs, &busybox)?;
    }
    let config = ImageConfig { env: vec![PATH.to_owned()], entrypoint: vec![path], ..Default::default() };
    Image::build(name, &rootfs, &config)
}

fn base() -> Rootfs {
    Rootfs::new()
        .file("/etc/passwd", 0o644, PASSWD)
        .file("/etc/group", 0o644, GROUP)
        .file("/etc/nsswitch.conf", 0o644, "hosts: files dns\n")
        .directory("/tmp", 0o1777)
        .directory("/root", 0o700)
        .directory("/run", 0o755)
        .directory("/dev", 0o755)
        .directory("/proc", 0o755)
        .directory("/sys", 0o755)
        .directory("/etc", 0o755)
}

fn find_busybox() -> Option<PathBuf> {
    ["/bin/busybox", "/usr/bin/busybox", "/usr/local/bin/busybox"].iter().map(PathBuf::from).find(|path| path.exists())
}

/// busybox under `/bin`, with a link for each tool it says it has.
fn with_busybox(rootfs: Rootfs, busybox: &Path) -> Result<Rootfs, ImageError> {
    let mut rootfs = rootfs.executable(busybox, "/bin/busybox")?;
    let listed =
        std::process::Command::new(busybox).arg("--list").output().map_err(ImageError::file("running", busybox))?;
    for tool in String::from_utf8_lossy(&listed.stdout).lines().filter(|tool| *tool != "busybox") {
        rootfs = rootfs.symlink(&format!("/bin/{tool}"), "busybox");
    }
    Ok(rootfs)
}
