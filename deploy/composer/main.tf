# What `bqdispatch deploy composer` does, for environments whose project is kept by Terraform. The environment itself is
# read only: it may be kept anywhere. Its packages, variables and pools, which no resource can change in an environment
# that is kept elsewhere, are set by gcloud, whenever one of their values changes. Run it in this folder of the checkout,
# with gcloud and uv on PATH.

terraform {
  required_version = ">= 1.5"
  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 5.0"
    }
  }
}

variable "project" {
  description = "Project of the environment."
  type        = string
}

variable "location" {
  description = "Region of the environment."
  type        = string
}

variable "environment" {
  description = "Name of an environment of Cloud Composer 3, with Airflow 2.11 or 3.x."
  type        = string
}

variable "config_bucket" {
  description = "Bucket of the dispatcher's configuration document, which has no variables in it and names ProjectID."
  type        = string
}

variable "config_object" {
  description = "Name of the configuration document in that bucket."
  type        = string
}

variable "job_projects" {
  description = "Projects with traces, beside ProjectID of the configuration."
  type        = set(string)
  default     = []
}

provider "google" {
  project = var.project
  region  = var.location
}

data "google_composer_environment" "airflow" {
  name   = var.environment
  region = var.location
}

data "google_storage_bucket_object_content" "config" {
  bucket = var.config_bucket
  name   = var.config_object
}

locals {
  config     = jsondecode(data.google_storage_bucket_object_content.config.content)
  data       = local.config.ProjectID
  trigger    = try(local.config.TriggerBucket, "${replace(local.data, "-", "_")}_bqtail")
  folders    = toset([for key in ["AsyncTaskURL", "JournalURL", "ErrorURL"] : split("/", local.config[key])[2]])
  sql_limit  = try(local.config.MaxConcurrentSQL, 0)
  jobs_limit = try(local.config.MaxConcurrentJobs, local.config.MaxConcurrentLoad, 0)

  airflow = data.google_composer_environment.airflow.config[0]
  account = "serviceAccount:${local.airflow.node_config[0].service_account}"
  bucket  = split("/", local.airflow.dag_gcs_prefix)[2]

  version = regex("__version__ = \"(.+)\"", file("${path.module}/../../bqdispatch_provider/__init__.py"))[0]
  sources = sha256(join("", [
    for name in fileset("${path.module}/../../bqdispatch_provider", "**/*.py") :
    filesha256("${path.module}/../../bqdispatch_provider/${name}")
  ]))
  index = "https://${var.location}-python.pkg.dev/${var.project}/bqdispatch/"

  roles = {
    bqdispatchFolders = yamldecode(file("${path.module}/../roles/bqdispatch-folders.yaml"))
    bqdispatchTrigger = yamldecode(file("${path.module}/../roles/bqdispatch-trigger.yaml"))
    bqdispatchJobs    = yamldecode(file("${path.module}/../roles/bqdispatch-jobs.yaml"))
  }
  pools = {
    bqdispatch_sql  = { slots = local.sql_limit == 0 ? -1 : local.sql_limit, description = "MaxConcurrentSQL" }
    bqdispatch_jobs = { slots = local.jobs_limit == 0 ? -1 : local.jobs_limit, description = "MaxConcurrentJobs" }
  }
  variables = merge(
    {
      AIRFLOW_CONN_BQDISPATCH_DEFAULT = jsonencode({
        conn_type = "bqdispatch"
        extra     = { config_url = "gs://${var.config_bucket}/${var.config_object}" }
      })
    },
    local.sql_limit == 0 ? {} : { BQDISPATCH_SQL_SLOTS = tostring(local.sql_limit) },
    local.jobs_limit == 0 ? {} : { BQDISPATCH_JOBS_SLOTS = tostring(local.jobs_limit) },
  )
  gcloud = "gcloud composer environments"
  where  = "--project=${var.project} --location=${var.location}"
}

resource "google_project_iam_custom_role" "role" {
  for_each    = local.roles
  project     = local.data
  role_id     = each.key
  title       = each.value.title
  description = each.value.description
  permissions = each.value.includedPermissions
}

resource "google_storage_bucket_iam_member" "folders" {
  for_each = local.folders
  bucket   = each.value
  role     = google_project_iam_custom_role.role["bqdispatchFolders"].id
  member   = local.account
}

resource "google_storage_bucket_iam_member" "trigger" {
  bucket = local.trigger
  role   = google_project_iam_custom_role.role["bqdispatchTrigger"].id
  member = local.account
}

resource "google_storage_bucket_iam_member" "config" {
  count  = contains(local.folders, var.config_bucket) ? 0 : 1
  bucket = var.config_bucket
  role   = "roles/storage.legacyObjectReader"
  member = local.account
}

resource "google_project_iam_member" "jobs" {
  project = local.data
  role    = google_project_iam_custom_role.role["bqdispatchJobs"].id
  member  = local.account
}

# A custom role holds in its own project alone, so each further project has one of its own.
resource "google_project_iam_custom_role" "jobs" {
  for_each    = var.job_projects
  project     = each.value
  role_id     = "bqdispatchJobs"
  title       = local.roles.bqdispatchJobs.title
  description = local.roles.bqdispatchJobs.description
  permissions = local.roles.bqdispatchJobs.includedPermissions
}

resource "google_project_iam_member" "other_jobs" {
  for_each = var.job_projects
  project  = each.value
  role     = google_project_iam_custom_role.jobs[each.value].id
  member   = local.account
}

resource "google_artifact_registry_repository" "python" {
  location      = var.location
  repository_id = "bqdispatch"
  format        = "PYTHON"
}

resource "google_artifact_registry_repository_iam_member" "reader" {
  location   = var.location
  repository = google_artifact_registry_repository.python.name
  role       = "roles/artifactregistry.reader"
  member     = local.account
}

# An environment that has a pip.conf already: add the index there, and leave this resource out.
resource "google_storage_bucket_object" "pip_conf" {
  bucket  = local.bucket
  name    = "config/pip/pip.conf"
  content = "[global]\nextra-index-url = ${local.index}simple/\n"
}

resource "terraform_data" "wheel" {
  triggers_replace = [local.version, local.sources, google_artifact_registry_repository.python.id]
  provisioner "local-exec" {
    working_dir = "${path.module}/../.."
    command     = <<-EOT
      set -e
      uv build --wheel --quiet --out-dir=dist
      export UV_PUBLISH_PASSWORD="$(gcloud auth print-access-token)"
      uv publish --publish-url=${local.index} --username=oauth2accesstoken --quiet dist/airflow_provider_bqdispatch-${local.version}-py3-none-any.whl
    EOT
  }
}

resource "terraform_data" "package" {
  triggers_replace = [local.version, data.google_composer_environment.airflow.id]
  depends_on = [
    terraform_data.wheel,
    google_storage_bucket_object.pip_conf,
    google_artifact_registry_repository_iam_member.reader,
  ]
  provisioner "local-exec" {
    command = "${local.gcloud} update ${var.environment} ${local.where} --update-pypi-package=airflow-provider-bqdispatch==${local.version}"
  }
}

resource "terraform_data" "variables" {
  triggers_replace = [local.variables, data.google_composer_environment.airflow.id]
  depends_on       = [terraform_data.package]
  provisioner "local-exec" {
    command     = "${local.gcloud} update ${var.environment} ${local.where} --update-env-variables=\"^|^$VARIABLES\""
    environment = { VARIABLES = join("|", [for name, value in local.variables : "${name}=${value}"]) }
  }
}

resource "terraform_data" "pool" {
  for_each         = local.pools
  triggers_replace = [each.value, data.google_composer_environment.airflow.id]
  depends_on       = [terraform_data.variables]
  provisioner "local-exec" {
    command = "${local.gcloud} run ${var.environment} ${local.where} pools set -- ${each.key} ${each.value.slots} ${each.value.description}"
  }
}

resource "google_storage_bucket_object" "dag" {
  depends_on = [terraform_data.package, terraform_data.variables, terraform_data.pool]
  bucket     = local.bucket
  name       = "dags/bqdispatch.py"
  source     = "${path.module}/../../dags/bqdispatch.py"
}
