package node

import (
	"strconv"
	"strings"

	"github.com/flarekv/flare/agent/options"
	"github.com/flarekv/flare/proto/text"
)

// valueColumn is where the values of show variables begin. Longer names have
// their value one space behind, or in the way of the original none.
const valueColumn = 24

// A variable is a line of show variables.
type variable struct {
	name string
	// option is the key of the option that it shows. Where this node has no such
	// option the line shows constant, which is the original's default.
	option   string
	constant string
}

// variables are the lines of the original in its order. Tools read them by name,
// so those that mean nothing here are shown too, as what the original has unless
// it is told otherwise.
var variables = []variable{
	{"back_log", "back-log", "30"},
	{"config_path", "", ""}, // see value
	{"pid_path", "", ""},
	{"daemonize", "", "false"},
	{"data_dir", "data-dir", ""},
	{"index_server(s)", "index-servers", ""}, // see value
	{"max_connection", "max-connection", "128"},
	{"mutex_slot", "", "64"},
	{"noreply_window_limit", "", "0"},
	{"net_read_timeout", "net-read-timeout", "600"},
	{"proxy_concurrency", "proxy-concurrency", "2"},
	{"reconstruction_interval", "reconstruction-interval", "0"},
	{"reconstruction_bwlimit", "reconstruction-bwlimit", "0"},
	{"replication_type", "replication-type", "async"},
	{"server_name", "server-name", ""},
	{"server_port", "server-port", "12121"},
	{"server_socket", "server-socket", ""},
	{"stack_size", "", "128"},
	{"storage_ap", "", "4"},
	{"storage_bucket_size", "", "131071"},
	{"storage_cache_size", "storage-cache-size", "65536"},
	{"storage_compress", "", ""},
	{"storage_large", "", "false"},
	{"storage_lmemb", "", "128"},
	{"storage_nmemb", "", "256"},
	{"storage_dfunit", "", "0"},
	{"storage_type", "", "rocksdb"},
	{"thread_pool_size", "", "5"},
	{"proxy_prior_netmask", "proxy-prior-netmask", "0"},
	{"max_total_thread_queue", "max-total-thread-queue", "0"},
	{"time_watcher_enabled", "time-watcher-enabled", "false"},
	{"time_watcher_polling_interval_msec", "time-watcher-polling-interval-msec", "0"},
	{"storage_access_watch_threshold_warn_msec", "storage-access-watch-threshold-warn-msec", "0"},
	{"storage_access_watch_threshold_ping_ng_msec", "storage-access-watch-threshold-ping-ng-msec", "0"},
	{"cluster_replication", "cluster-replication", "0"}, // see value
	{"cluster_replication_server_name", "cluster-replication-server-name", ""},
	{"cluster_replication_server_port", "cluster-replication-server-port", "12121"},
	{"cluster_replication_concurrency", "cluster-replication-concurrency", "2"},
	{"cluster_replication_mode", "cluster-replication-mode", "duplicate"},
}

// hasOption tells which options this node has.
var hasOption = func() map[string]bool {
	known := map[string]bool{}
	for _, spec := range options.Specs() {
		known[spec.Key] = true
	}
	return known
}()

// value returns what is shown.
func (v *variable) value(s *Server, o *options.Options) string {
	value := v.constant
	if hasOption[v.option] {
		value = o.Value(v.option)
	}
	switch v.name {
	case "config_path":
		if s.settings != nil {
			return s.settings.file
		}
	case "index_server(s)":
		return strings.Join(s.index.servers(), ", ")
	case "cluster_replication":
		// The one boolean that the original shows as a number.
		if on, err := strconv.ParseBool(value); err == nil && on {
			return "1"
		}
		return "0"
	}
	return value
}

// appendVariables appends the answer to show variables.
func (s *Server) appendVariables(dst []byte) []byte {
	o := s.live.Load()
	for i := range variables {
		v := &variables[i]
		dst = append(dst, v.name...)
		dst = append(dst, ':')
		if pad := valueColumn - len(v.name) - 1; pad >= 0 {
			dst = append(dst, strings.Repeat(" ", pad)...)
		} else {
			dst = append(dst, ' ')
		}
		dst = append(dst, v.value(s, o)...)
		dst = append(dst, "\r\n"...)
	}
	return append(dst, text.ReplyEnd...)
}

// appendSettings appends the answer to stats settings: every option by its own
// name with the value in force.
func (s *Server) appendSettings(dst []byte) []byte {
	o := s.live.Load()
	for _, spec := range options.Specs() {
		dst = text.AppendStat(dst, spec.Key, o.Value(spec.Key))
	}
	return append(dst, text.ReplyEnd...)
}
