output "collector" {
  description = "HOST:PORT for agents and sumunctl: the name has to lead to the address below"
  value       = "${var.collector.dns_name}:7443"
}

output "collector_address" {
  description = "The collector's address"
  value       = aws_instance.collector.private_ip
}

output "read_ca" {
  description = "How to read the collector's authority (ca_pem) once it runs"
  value       = "aws ssm start-session --target ${aws_instance.collector.id} --document-name AWS-StartNonInteractiveCommand --parameters command='sudo sumun-collector show ca'"
}

output "ssm_document" {
  description = "For instances that run already: aws ssm send-command --document-name"
  value       = aws_ssm_document.install.name
}

output "agent_user_data" {
  description = "For launch templates, once ca_pem is known; such an instance needs metadata_options { http_tokens = \"required\" } only"
  value = var.ca_pem == "" ? "" : templatefile("${path.module}/../user-data.yaml.tftpl", {
    install_base64 = base64encode(local.install)
    collector      = "${var.collector.dns_name}:7443"
    ca_base64      = base64encode(var.ca_pem)
    package_url    = var.packages["agent"].url
    package_sha256 = var.packages["agent"].sha256
  })
}
