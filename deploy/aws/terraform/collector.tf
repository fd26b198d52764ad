# The collector: an instance of its own, whose data is on a volume that outlives it.
data "aws_subnet" "collector" {
  id = var.subnet_id
}

resource "aws_security_group" "collector" {
  name        = "${var.name}-collector"
  description = "Agents and admins of Sumun"
  vpc_id      = var.vpc_id
  tags        = var.tags
}

resource "aws_vpc_security_group_ingress_rule" "collector" {
  for_each          = toset(var.agent_cidrs)
  security_group_id = aws_security_group.collector.id
  cidr_ipv4         = each.value
  ip_protocol       = "tcp"
  from_port         = 7443
  to_port           = 7443
}

resource "aws_vpc_security_group_egress_rule" "collector" {
  security_group_id = aws_security_group.collector.id
  description       = "Packages"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}

resource "aws_iam_role" "collector" {
  name = "${var.name}-collector"
  assume_role_policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Action = "sts:AssumeRole", Principal = { Service = "ec2.amazonaws.com" } }]
  })
  tags = var.tags
}

# Admins reach it by Session Manager; no port and no key is for them.
resource "aws_iam_role_policy_attachment" "collector" {
  role       = aws_iam_role.collector.name
  policy_arn = "arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore"
}

resource "aws_iam_instance_profile" "collector" {
  name = "${var.name}-collector"
  role = aws_iam_role.collector.name
}

resource "aws_ebs_volume" "collector" {
  availability_zone = data.aws_subnet.collector.availability_zone
  size              = var.collector.volume_gib
  type              = "gp3"
  encrypted         = true
  tags              = merge(var.tags, { Name = "${var.name}-collector" })
  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_instance" "collector" {
  ami                    = var.collector.ami_id
  instance_type          = var.collector.instance_type
  subnet_id              = var.subnet_id
  vpc_security_group_ids = [aws_security_group.collector.id]
  iam_instance_profile   = aws_iam_instance_profile.collector.name
  user_data_base64 = base64gzip(templatefile("${path.module}/collector-user-data.yaml.tftpl", {
    dns_name            = var.collector.dns_name
    packages            = [for part in ["collector", "sumunctl"] : var.packages[part]]
    region_certificates = { for region, pem in var.region_certificates : region => base64encode(pem) }
    join_base64 = base64encode(templatefile("${path.module}/join.toml.tftpl", {
      accounts        = var.accounts
      regions         = keys(var.region_certificates)
      max_age_seconds = var.max_age_seconds
    }))
  }))
  metadata_options {
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }
  root_block_device {
    encrypted = true
  }
  tags = merge(var.tags, { Name = "${var.name}-collector" })
}

resource "aws_volume_attachment" "collector" {
  device_name = "/dev/sdf"
  volume_id   = aws_ebs_volume.collector.id
  instance_id = aws_instance.collector.id
}
