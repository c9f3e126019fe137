//! The image configuration as the language sees it, and as the document has it: both directions.

use kiln_image::config::{ContainerConfig, Healthcheck};
use kiln_parser::config::ImageConfig;
use kiln_parser::instruction;
use kiln_parser::platform::Platform;

/// What the language needs of a base's document.
pub(crate) fn from_document(container: &ContainerConfig, author: &str) -> ImageConfig {
    ImageConfig {
        user: container.user.clone(),
        exposed_ports: container.exposed_ports.keys().cloned().collect(),
        env: container.env.iter().map(|line| split(line)).collect(),
        entrypoint: container.entrypoint.clone(),
        cmd: container.cmd.clone(),
        volumes: container.volumes.keys().cloned().collect(),
        working_dir: container.working_dir.clone(),
        labels: container.labels.clone(),
        stop_signal: container.stop_signal.clone(),
        healthcheck: container.healthcheck.as_ref().map(|check| instruction::Healthcheck {
            test: check.test.clone(),
            interval: check.interval,
            timeout: check.timeout,
            start_period: check.start_period,
            start_interval: check.start_interval,
            retries: i32::try_from(check.retries).unwrap_or(i32::MAX),
        }),
        shell: container.shell.clone(),
        on_build: container.on_build.clone(),
        args_escaped: container.args_escaped,
        author: author.to_owned(),
    }
}

fn split(line: &str) -> (String, String) {
    let (name, value) = line.split_once('=').unwrap_or((line, ""));
    (name.to_owned(), value.to_owned())
}

/// What the document says of a configuration.
pub(crate) fn to_document(config: &ImageConfig) -> ContainerConfig {
    let empty = |key: &String| (key.clone(), serde_json::Map::new());
    ContainerConfig {
        user: config.user.clone(),
        exposed_ports: config.exposed_ports.iter().map(empty).collect(),
        env: config.env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
        entrypoint: config.entrypoint.clone(),
        cmd: config.cmd.clone().filter(|words| !words.is_empty()),
        volumes: config.volumes.iter().map(empty).collect(),
        working_dir: config.working_dir.clone(),
        labels: config.labels.clone(),
        stop_signal: config.stop_signal.clone(),
        healthcheck: config.healthcheck.as_ref().map(|check| Healthcheck {
            test: check.test.clone(),
            interval: check.interval,
            timeout: check.timeout,
            start_period: check.start_period,
            start_interval: check.start_interval,
            retries: i64::from(check.retries),
        }),
        shell: config.shell.clone(),
        on_build: config.on_build.clone(),
        args_escaped: config.args_escaped,
    }
}

/// A platform of the language as OCI writes it.
pub(crate) fn oci_platform(platform: &Platform) -> kiln_cache::Platform {
    kiln_cache::Platform {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        os_version: None,
        os_features: Vec::new(),
        variant: (!platform.variant.is_empty()).then(|| platform.variant.clone()),
    }
}

/// The platform of a document as the language has it.
pub(crate) fn language_platform(platform: &kiln_cache::Platform) -> Platform {
    Platform {
        os: platform.os.clone(),
        architecture: platform.architecture.clone(),
        variant: platform.variant.clone().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use kiln_parser::config::ImageConfig;

    use super::{from_document, to_document};

    #[test]
    fn both_directions_agree() {
        let config = ImageConfig {
            user: "u".into(),
            exposed_ports: ["80/tcp".to_owned()].into(),
            env: vec![("A".into(), "b=c".into())],
            entrypoint: Some(vec!["e".into()]),
            cmd: Some(vec!["c".into()]),
            volumes: ["/v".to_owned()].into(),
            working_dir: "/w".into(),
            labels: [("l".to_owned(), "m".to_owned())].into(),
            stop_signal: "INT".into(),
            healthcheck: Some(kiln_parser::instruction::Healthcheck {
                test: vec!["NONE".into()],
                interval: 5,
                ..Default::default()
            }),
            shell: vec!["/bin/bash".into()],
            on_build: vec!["RUN a".into()],
            args_escaped: true,
            author: "me".into(),
        };
        assert_eq!(from_document(&to_document(&config), "me"), config);
    }
}
