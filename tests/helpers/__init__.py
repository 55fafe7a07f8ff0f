"""What tests share: small models, finished runs, stand-ins for clouds, pods and buckets."""
