# The first process of a node, in fresh namespaces. Arguments: the node's
# name, its directory, and the program that keeps the namespaces afterwards.
set -eu
name=$1 dir=$2 hold=$3

# Volumes mounted on the machine show up here, what is mounted here stays here.
mount --make-rslave /
mount --make-rshared /

mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mkdir /run/netns
for place in /var/lib/kubelet /var/lib/cni /var/log/pods /var/log/containers; do
	mkdir -p "$dir/root$place"
	mount --bind "$dir/root$place" "$place"
	mount --make-rshared "$place"
done

hostname "$name"
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter
echo 0 >/proc/sys/net/ipv4/conf/default/rp_filter
if [ -e /proc/sys/net/bridge/bridge-nf-call-iptables ]; then
	echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables
fi
ip link set lo up
exec "$hold"
