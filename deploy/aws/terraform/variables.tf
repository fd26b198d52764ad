variable "name" {
  description = "What everything is called, and begins with"
  type        = string
  default     = "sumun"
}

variable "vpc_id" {
  description = "Where the collector and its security groups are"
  type        = string
}

variable "subnet_id" {
  description = "The collector's subnet: a private one, from which packages can be fetched"
  type        = string
}

variable "collector" {
  description = "Of the collector's instance. ami_id: a distribution with cloud-init and systemd"
  type = object({
    ami_id        = string
    instance_type = optional(string, "m7i.large")
    volume_gib    = optional(number, 200)
    dns_name      = string
  })
}

variable "packages" {
  description = "Addresses (https://) and SHA-256 of the packages: agent and collector, and sumunctl for the collector's admins"
  type = map(object({
    url    = string
    sha256 = string
  }))
  validation {
    condition     = alltrue([for part in ["agent", "collector", "sumunctl"] : contains(keys(var.packages), part)])
    error_message = "There has to be an agent, a collector and a sumunctl."
  }
  validation {
    condition     = alltrue([for package in values(var.packages) : startswith(package.url, "https://") && length(package.sha256) == 64])
    error_message = "A package is fetched by https:// only, and has a SHA-256."
  }
}

variable "accounts" {
  description = "Accounts whose instances may join"
  type        = list(string)
  validation {
    condition     = length(var.accounts) > 0 && alltrue([for account in var.accounts : can(regex("^[0-9]{12}$", account))])
    error_message = "Accounts have twelve digits, and there has to be one."
  }
}

variable "region_certificates" {
  description = "Amazon's RSA-2048 certificate for each region whose instances may join, as PEM: from the page \"AWS public certificates\" of EC2's user guide"
  type        = map(string)
  validation {
    condition     = length(var.region_certificates) > 0 && alltrue([for pem in values(var.region_certificates) : startswith(pem, "-----BEGIN CERTIFICATE-----")])
    error_message = "Without a certificate nobody could join."
  }
}

variable "max_age_seconds" {
  description = "An instance that was started longer ago cannot join by its document: raise it while existing instances are brought in"
  type        = number
  default     = 3600
}

variable "agent_cidrs" {
  description = "Where agents and admins come from"
  type        = list(string)
}

variable "ca_pem" {
  description = "The collector's authority, as `terraform output` tells how to read it after the collector's first start; empty before"
  type        = string
  default     = ""
}

variable "tags" {
  description = "Of everything"
  type        = map(string)
  default     = {}
}
