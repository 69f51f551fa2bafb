package sink

import (
	"compress/flate"
	"encoding/json"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/Graylog2/go-gelf/gelf"

	"github.com/onggi/onggi/internal/logs"
)

var gelfKeys = []string{"gelf-address", "gelf-compression-level", "gelf-compression-type", "gelf-tcp-max-reconnect", "gelf-tcp-reconnect-delay"}

var gelfCompression = map[string]gelf.CompressType{"": gelf.CompressGzip, "gzip": gelf.CompressGzip, "zlib": gelf.CompressZlib, "none": gelf.CompressNone}

func gelfAddress(s string) (*url.URL, error) {
	if s == "" {
		return nil, invalid("gelf-address is a required parameter")
	}
	u, err := url.Parse(s)
	if err != nil {
		return nil, invalid("gelf-address: %w", err)
	}
	if u.Scheme != "udp" && u.Scheme != "tcp" {
		return nil, invalid("gelf: endpoint needs to be TCP or UDP")
	}
	if _, _, err := net.SplitHostPort(u.Host); err != nil {
		return nil, invalid("gelf: please provide gelf-address as proto://host:port")
	}
	return u, nil
}

func checkGELF(o map[string]string) error {
	u, err := gelfAddress(o["gelf-address"])
	if err != nil {
		return err
	}
	for k, v := range o {
		switch k {
		case "gelf-compression-level", "gelf-compression-type":
			if u.Scheme != "udp" {
				return invalid("compression is only supported on UDP")
			}
			_, known := gelfCompression[v]
			if n, err := strconv.Atoi(v); k == "gelf-compression-type" && !known || k == "gelf-compression-level" && (err != nil || n < flate.DefaultCompression || n > flate.BestCompression) {
				return invalid("unknown value %.50q for log opt %q for gelf log driver", v, k)
			}
		case "gelf-tcp-max-reconnect", "gelf-tcp-reconnect-delay":
			if u.Scheme != "tcp" {
				return invalid("%q is only valid for TCP", k)
			}
			if n, err := strconv.Atoi(v); err != nil || n < 0 {
				return invalid("%q must be a positive integer", k)
			}
		}
	}
	return nil
}

type graylog struct {
	w     gelf.Writer
	host  string
	extra json.RawMessage
}

func openGELF(o map[string]string, s Source) (Sink, error) {
	u, err := gelfAddress(o["gelf-address"])
	if err != nil {
		return nil, err
	}
	extra := map[string]any{
		"_container_id": s.ContainerID, "_container_name": s.Name(), "_image_id": s.ContainerImageID, "_image_name": s.ContainerImageName,
		"_command": s.Command(), "_tag": s.Tag, "_created": s.ContainerCreated,
	}
	for k, v := range s.Attrs {
		extra["_"+strings.TrimPrefix(k, "_")] = v
	}
	g := &graylog{host: s.Host}
	if g.extra, err = json.Marshal(extra); err != nil {
		return nil, err
	}
	if u.Scheme == "tcp" {
		w, err := gelf.NewTCPWriter(u.Host)
		if err != nil {
			return nil, err
		}
		w.MaxReconnect, w.ReconnectDelay = 0, 0 // who calls us comes back
		g.w = w
		return g, nil
	}
	w, err := gelf.NewUDPWriter(u.Host)
	if err != nil {
		return nil, err
	}
	w.CompressionType = gelfCompression[o["gelf-compression-type"]]
	if v := o["gelf-compression-level"]; v != "" {
		w.CompressionLevel, _ = strconv.Atoi(v)
	}
	g.w = w
	return g, nil
}

func (g *graylog) Write(e logs.Entry) error {
	text := line(e)
	if text == "" {
		return nil // the protocol has no empty message
	}
	level := int32(gelf.LOG_INFO)
	if e.Stream == "stderr" {
		level = gelf.LOG_ERR
	}
	at := float64(e.Time.UnixNano()/int64(time.Millisecond)) / 1000
	return g.w.WriteMessage(&gelf.Message{Version: "1.1", Host: g.host, Short: text, TimeUnix: at, Level: level, RawExtra: g.extra})
}

func (g *graylog) Close() error { return g.w.Close() }
