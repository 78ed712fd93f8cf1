// Loaded by Node before a client's script: a client of the tests speaks to this machine only.
const dns = require("node:dns");
const net = require("node:net");

const ours = (host) => host === undefined || /^(127\.|::1$|localhost$)/.test(host);

function refuse(host) {
  throw new Error(`a client of the tests speaks to this machine only, not to ${host}`);
}

const connect = net.Socket.prototype.connect;
net.Socket.prototype.connect = function (...given) {
  const options = Array.isArray(given[0]) ? given[0][0] : given[0];
  if (typeof options === "object" && options !== null && !options.path && !ours(options.host)) refuse(options.host);
  return connect.apply(this, given);
};

for (const home of [dns, dns.promises]) {
  const lookup = home.lookup;
  home.lookup = function (host, ...rest) {
    if (!ours(host)) refuse(host);
    return lookup.call(this, host, ...rest);
  };
}
