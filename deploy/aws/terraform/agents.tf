# What makes an instance join: user data for launch templates, and a document for those that run already.
locals {
  # Read once for all: the same script everywhere.
  install = file("${path.module}/../install")
}

resource "aws_ssm_document" "install" {
  name            = "${var.name}-install"
  document_type   = "Command"
  document_format = "JSON"
  content         = file("${path.module}/../ssm-install.json")
  tags            = var.tags
}
