//! The image of the hosts: the one that users build, from the binaries beside the running program.

use std::path::{Path, PathBuf};
use std::process::Command;

use testcontainers::runners::AsyncBuilder;
use testcontainers::{GenericBuildableImage, GenericImage};
use tokio::sync::OnceCell;

use crate::cluster::binary_path;

/// Name and tag, which the next build takes over.
const NAME: &str = "weir-test";
const TAG: &str = "latest";

/// Why hosts cannot be started here; none, if they can. Where the variable `CI` is set they must be.
pub async fn unavailable() -> Option<String> {
    let reason = why_unavailable().await?;
    assert!(std::env::var_os("CI").is_none(), "CI is set, but {reason}");
    Some(reason)
}

async fn why_unavailable() -> Option<String> {
    let Ok(docker) = testcontainers::core::client::docker_client_instance().await else {
        return Some("there is no Docker".to_owned());
    };
    if docker.ping().await.is_err() {
        return Some("Docker does not answer".to_owned());
    }
    if !rustix::process::getuid().is_root() {
        return Some("cutting networks takes root".to_owned());
    }
    None
}

/// Builds the image, once in this process; Docker's cache makes the next time cheap while the binaries stay.
pub(super) async fn build() -> GenericImage {
    static BUILT: OnceCell<GenericImage> = OnceCell::const_new();
    BUILT
        .get_or_init(|| async {
            let context = binary_path("image");
            gather(&context);
            let image = GenericBuildableImage::new(NAME, TAG)
                .with_dockerfile(context.join("Dockerfile"))
                .with_file(context.join("system"), "system")
                .with_file(context.join("data"), "data");
            image.build_image().await.expect("an image")
        })
        .await
        .clone()
}

/// Puts together what goes into the image.
fn gather(context: &Path) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/rootfs");
    let binaries: PathBuf = binary_path("weir").parent().expect("target/<profile>").to_owned();
    let ran = Command::new(&script).arg(&binaries).arg(context).output().expect("a shell");
    assert!(ran.status.success(), "{}: {}", script.display(), String::from_utf8_lossy(&ran.stderr));
}
