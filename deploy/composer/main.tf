# Custom roles and their bindings for `bqdispatch deploy composer --no-rights`, for projects whose rights are kept by
# Terraform. What is granted where, `bqdispatch deploy rights` says, from the configuration and by the same rules as
# everywhere: it is called without a shell, and has to be on PATH. The environment is only read.

terraform {
  required_version = ">= 1.7"
  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 6.26"
    }
    external = {
      source  = "hashicorp/external"
      version = ">= 2.3"
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

variable "config" {
  description = "gs:// URL of the dispatcher's configuration document."
  type        = string
}

variable "variables" {
  description = "Values for variables in the configuration document."
  type        = map(string)
  default     = {}
}

variable "setup" {
  description = "Name of the set-up, where several stand side by side."
  type        = string
  default     = null
}

variable "by_prefix" {
  description = "Limit the account to the folders that the configuration names; the buckets need uniform bucket-level access."
  type        = bool
  default     = false
}

variable "job_projects" {
  description = "Projects with traces, beside ProjectID of the configuration."
  type        = set(string)
  default     = []
}

variable "impersonation_chain" {
  description = "Service accounts that the set-up's connection impersonates, one by way of the other; the last one gets the roles."
  type        = list(string)
  default     = []
}

variable "make_roles" {
  description = "Make the custom roles. False for a further set-up of a project whose roles another state keeps."
  type        = bool
  default     = true
}

provider "google" {
  project = var.project
  region  = var.location
}

data "google_composer_environment" "airflow" {
  name   = var.environment
  region = var.location
}

data "external" "rights" {
  program = local.program
}

data "google_project_iam_custom_roles" "there" {
  for_each = toset([for role in local.roles : role.project])
  project  = each.value
}

locals {
  program = concat(
    ["bqdispatch", "deploy", "rights", "--project=${var.project}", "--config=${var.config}"],
    [for name, value in var.variables : "--var=${name}=${value}"],
    [for project in var.job_projects : "--job-project=${project}"],
    var.setup == null ? [] : ["--setup=${var.setup}"],
    var.by_prefix ? ["--by-prefix"] : [],
    length(var.impersonation_chain) == 0 ? [] : ["--impersonation-chain=${join(",", var.impersonation_chain)}"],
  )
  roles    = { for key, role in jsondecode(data.external.rights.result.roles) : key => role if var.make_roles }
  buckets  = jsondecode(data.external.rights.result.buckets)
  projects = jsondecode(data.external.rights.result.projects)
  acts_as  = jsondecode(data.external.rights.result.acts_as)
  own      = data.google_composer_environment.airflow.config[0].node_config[0].service_account
  account  = "serviceAccount:${coalesce(data.external.rights.result.account, local.own)}"
}

# The provider refuses to create a role that is there: one that the command or another state has made is taken over.
import {
  for_each = {
    for key, role in local.roles : key => "projects/${role.project}/roles/${role.role_id}"
    if contains(data.google_project_iam_custom_roles.there[role.project].roles[*].role_id, role.role_id)
  }
  to = google_project_iam_custom_role.role[each.key]
  id = each.value
}

resource "google_project_iam_custom_role" "role" {
  for_each    = local.roles
  project     = each.value.project
  role_id     = each.value.role_id
  title       = each.value.title
  description = each.value.description
  permissions = each.value.permissions
  lifecycle {
    postcondition {
      condition     = !self.deleted
      error_message = "The role was deleted. This brings it back:\n  gcloud iam roles undelete ${self.role_id} --project=${self.project}"
    }
  }
}

resource "google_storage_bucket_iam_member" "bucket" {
  for_each   = local.buckets
  depends_on = [google_project_iam_custom_role.role]
  bucket     = each.value.bucket
  role       = each.value.role
  member     = local.account
  dynamic "condition" {
    for_each = each.value.condition == null ? [] : [each.value.condition]
    content {
      title      = condition.value.title
      expression = condition.value.expression
    }
  }
}

resource "google_project_iam_member" "project" {
  for_each   = local.projects
  depends_on = [google_project_iam_custom_role.role]
  project    = each.value.project
  role       = each.value.role
  member     = local.account
}

# The environment's account acts as the first one of the chain, and each of them as the next.
resource "google_service_account_iam_member" "acts_as" {
  for_each           = local.acts_as
  service_account_id = "projects/-/serviceAccounts/${each.value.account}"
  role               = each.value.role
  member             = "serviceAccount:${coalesce(each.value.by, local.own)}"
}
