//! What users install. These tests look at the files that packages are made of: they build and
//! install nothing. The test of the packages is `tests/packages.sh`, which takes a release build:
//! it is run before each release, and by whoever changes how packages are made. Here is what would
//! make it fail, or would have what is written about packages be wrong.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn toml(path: &str) -> toml::Table {
    read(path)
        .parse()
        .unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn the_wheel_has_the_binary_and_its_version() {
    let wheel = toml("pyproject.toml");
    assert_eq!(wheel["tool"]["maturin"]["bindings"].as_str(), Some("bin"));
    let project = &wheel["project"];
    assert_eq!(project["name"].as_str(), Some("nightshift-batch"));
    // Of Cargo.toml: there is one version.
    assert_eq!(project["dynamic"].as_array().map(Vec::len), Some(1));
    let package = &toml("Cargo.toml")["package"];
    for key in ["description", "license"] {
        assert_eq!(project[key], package[key], "{key}");
    }
}

#[test]
fn the_debian_package_has_files_that_are_there() {
    let package = &toml("Cargo.toml")["package"]["metadata"]["deb"];
    let assets = package["assets"].as_array().expect("is a list");
    for asset in assets {
        let source = asset[0].as_str().expect("is text");
        let source = source.trim_end_matches("/*.md");
        let is_built = source.starts_with("target/");
        assert!(is_built || root().join(source).exists(), "{source}");
    }
    let keys = assets
        .iter()
        .find(|asset| asset[0].as_str() == Some("packaging/deb/environment"));
    let mode = keys.and_then(|asset| asset[2].as_str());
    assert_eq!(mode, Some("640"), "keys are for root alone");
    // Whoever upgrades keeps what they wrote.
    let kept = package["conf-files"].to_string();
    for file in ["nightshift.toml", "environment"] {
        assert!(kept.contains(&format!("/etc/nightshift/{file}")), "{kept}");
    }
}

#[test]
fn the_unit_in_the_documents_is_the_one_in_the_package() {
    let unit = read("packaging/deb/nightshift.service");
    let documented = unit.replace("/usr/bin/nightshift", "/usr/local/bin/nightshift");
    let page = read("docs/deploying.md");
    assert!(page.contains(documented.trim_end()), "{documented}");
}

/// A `nightshift-as-service` whose `systemd-run` only says what it was to run.
fn as_service(args: &[&str]) -> String {
    let directory = tempfile::tempdir().expect("makes a directory");
    let systemd_run = directory.path().join("systemd-run");
    fs::write(&systemd_run, "#!/bin/sh\nprintf '%s\\n' \"$@\"\n").expect("writes");
    let executable = fs::Permissions::from_mode(0o755);
    fs::set_permissions(&systemd_run, executable).expect("can be run");
    let ran = Command::new("/bin/sh")
        .arg(root().join("packaging/deb/nightshift-as-service"))
        .args(args)
        .env("PATH", directory.path())
        .output()
        .expect("runs");
    assert!(ran.status.success(), "{ran:?}");
    String::from_utf8(ran.stdout).expect("is text")
}

#[test]
fn commands_beside_the_service_find_what_it_finds() {
    let said = as_service(&["keys", "create", "--name", "a laptop"]);
    let unit = read("packaging/deb/nightshift.service");
    for setting in [
        "User=",
        "StateDirectory=",
        "StateDirectoryMode=",
        "WorkingDirectory=",
        "EnvironmentFile=",
    ] {
        let of_unit = unit.lines().find(|line| line.starts_with(setting));
        let of_unit = of_unit.expect("is in the unit");
        let property = format!("--property={of_unit}");
        assert!(said.lines().any(|line| line == property), "{said}");
    }
    let configuration = "--config\n/etc/nightshift/nightshift.toml\n";
    assert!(unit.contains(&configuration.trim_end().replace('\n', " ")));
    let command = format!("\nnightshift\nkeys\ncreate\n--name\na laptop\n{configuration}");
    assert!(said.ends_with(&command), "{said}");

    let other = as_service(&["check", "--config", "other.toml"]);
    let ends = "\nnightshift\ncheck\n--config\nother.toml\n";
    assert!(other.ends_with(ends), "{other}");
    let without = as_service(&["--version"]);
    assert!(without.ends_with("\nnightshift\n--version\n"), "{without}");

    for file in ["docs/deploying.md", "packaging/deb/nightshift.toml"] {
        let text = read(file);
        assert!(text.contains("sudo nightshift-as-service check"), "{file}");
        assert!(!text.contains("sudo -u nightshift nightshift"), "{file}");
    }
}

/// The steps of a release, in their order: nothing is published that was not tried.
#[test]
fn a_release_has_what_is_tried_for_both_architectures() {
    let release = read(".github/workflows/release.yml");
    let mut rest = release.as_str();
    for step in [
        "packaging/build.sh",
        "tests/packages.sh dist",
        "actions/upload-artifact",
        "publish:",
        "needs: build",
        "gh release create",
    ] {
        let found = rest.split_once(step);
        rest = found
            .unwrap_or_else(|| panic!("{step} is not in its place"))
            .1;
    }
    for leniency in ["continue-on-error", "always()", "|| true"] {
        assert!(!release.contains(leniency), "{leniency}");
    }
    for words in [
        "packaging/build.sh ${{ matrix.target }}",
        "tests/packages.sh dist",
        "target: x86_64-unknown-linux-gnu",
        "target: aarch64-unknown-linux-gnu",
    ] {
        assert!(release.contains(words), "{words}");
    }
    for script in [
        "packaging/build.sh",
        "tests/packages.sh",
        "packaging/deb/postinst",
        "packaging/deb/nightshift-as-service",
    ] {
        let mode = fs::metadata(root().join(script))
            .expect("is there")
            .permissions();
        assert_eq!(mode.mode() & 0o111, 0o111, "{script} can be run");
    }
    let readme = read("README.md");
    for way in [
        "pip install nightshift-batch",
        "uvx",
        ".tar.gz",
        ".deb",
        "There is no release yet",
    ] {
        assert!(readme.contains(way), "the README does not say {way}");
    }
}
